"""Find the text nearest to another by the angle between their embeddings."""

import hearthlm
from hearthlm.demo import model_path

texts = ["Tom is a baker.", "The storm broke the old bridge.", "Anna bakes bread at the bakery."]
with hearthlm.LlmInference.create_from_model_path(model_path()) as llm:
    rows = llm.embed(texts)
    query = llm.embed("Who bakes bread?")[0]
    for similarity, text in sorted(zip(rows @ query, texts, strict=True), reverse=True):
        print(f"{similarity:.3f}  {text}")
