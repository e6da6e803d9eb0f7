"""Stream answers inside asyncio, several at once."""

import asyncio

import hearthlm
from hearthlm.demo import model_path


async def tell(llm: hearthlm.LlmInference, thing: str) -> str:
    parts = [part async for part in llm.astream(f"Tell me a story about a {thing}.")]
    return f"{thing}: {''.join(parts)}"


async def main() -> None:
    with hearthlm.LlmInference.create_from_model_path(model_path()) as llm:
        for story in await asyncio.gather(*(tell(llm, thing) for thing in ("fox", "boat", "robot"))):
            print(story)


asyncio.run(main())
