"""Write the demo model's texts: prompts with answers, from a seeded grammar with a training and a held-out part.

The held-out part uses other names, places, story subjects, sentence templates, questions and prompt wordings.
"""

# ruff: noqa: SIM905 -- a line of words is easier to read and extend than a list of strings

from __future__ import annotations

import random
import re
import sys
from dataclasses import dataclass, field

import stories
import words
from facts import EVENT_RELATIONS, RELATIONS, Ask, Relation

TASKS = ("story", "answer", "decline", "summary", "cannot")


@dataclass(frozen=True)
class Turn:
    """A prompt, its answer, what kind of answer it is, and the words a right answer must contain."""

    prompt: str
    answer: str
    task: str
    keys: tuple[str, ...] = ()


@dataclass
class Subject:
    """Someone or something that a passage is about."""

    name: str
    pronouns: tuple[str, str, str]
    facts: list[Fact] = field(default_factory=list)


@dataclass
class Fact:
    """A relation with its slots filled for one subject."""

    relation: Relation
    slots: dict[str, str]


@dataclass
class Passage:
    """A text with what it says and about whom."""

    text: str
    subjects: list[Subject]


_ADJECTIVES = "tall small old new red white stone wooden famous beautiful round big".split()
_PREFIXES = [
    "As everyone knows, ",
    "These days ",
    "It is well known that ",
    "People say that ",
    "In fact, ",
    "By the way, ",
    "It is true that ",
    "Today ",
    "They say that ",
    "Of course, ",
    "Without doubt, ",
    "To tell the truth, ",
    "As far as we know, ",
    "Now and always, ",
    "Since last year, ",
    "Like many others, ",
    "Strange but true, ",
    "According to the newspaper, ",
    "There is no secret that ",
    "One thing is certain, and that is that ",
    "Once more we hear that ",
    "Not everyone knows that ",
    "Some say that ",
    "With some luck, ",
    "Happily, ",
    "Sadly, ",
    "Just so you know, ",
    "Perhaps you have heard that ",
    "Until now, ",
    "Because of a promise, ",
    "Against all advice, ",
    "After all, ",
    "From what I hear, ",
    "Here is a fact: ",
    "If the letters are right, ",
    "Even in bad years, ",
    "Whatever people think, ",
    "Most people know that ",
]
_TAILS = [
    ", of course",
    ", as everyone knows",
    ", people say",
    ", and that will not change",
    ", which is no secret",
    ", as far as we know",
    " these days",
    ", and that is that",
    ", to be sure",
    ", it is said",
    ", and nobody doubts it",
    ", or so they say",
    ", just as before",
    ", and has never been sorry for it",
    ", like many people here",
    ", and that is a good thing",
]
_JOINS = [
    "{X}, who {b1}, {b2}.",
    "{X} {b1} and {b2}.",
    "{N} {b1}, and {s} {b2}.",
    "{N} not only {b1}, but {s} also {b2}.",
    "{N} {b1}. Also, {s} {b2}.",
    "{N} also {b1} and {b2}.",
    "{X}, who also {b1}, {b2}.",
]
_HELD_JOINS = ["{N} {b1} and also {b2}.", "{X}, who {b1}, also {b2}."]
_CONTRASTS = [
    "{X} {b1}, but {Y} {b2}.",
    "While {X} {b1}, {Y} {b2}.",
    "{X} {b1}. {Y}, however, {b2}.",
    "{X} {b1}; {Y} {b2}.",
    "Whereas {X} {b1}, {Y} {b2}.",
    "{Y} {b2}, and as for {X}, {X} {b1}.",
    "As we know, {X} {b1} and {Y} {b2}.",
]
_HELD_CONTRASTS = ["{X} {b1}, and {Y} {b2}.", "{X} {b1}, whereas {Y} {b2}."]
_FILLERS = [
    "The weather was fine.",
    "It was a quiet week.",
    "Many people know this.",
    "The days were long and warm.",
    "Nobody was surprised.",
    "It had rained all night.",
    "The streets were full of people.",
    "Not much else happened.",
    "It was a good year.",
    "The children were playing outside.",
    "The sun was shining.",
    "Life goes on as always.",
    "The neighbours often talk about it.",
]
_FILLER_STARTS = [
    "All in all",
    "For some time",
    "After a while",
    "Even so",
    "Nevertheless",
    "Outside",
    "At noon",
    "That year",
    "In those days",
    "Far away",
    "Every so often",
    "As always",
    "Later on",
    "Above the roofs",
    "Not far away",
    "By and by",
    "Without any hurry",
    "When evening came",
    "While all this happened",
    "Before long",
    "Until late",
    "Around the corner",
    "Under the trees",
    "With every hour",
    "Near the end",
    "Down the street",
    "Over the years",
    "No doubt",
    "Then as now",
    "Soon after",
]
_FILLER_BODIES = [
    "nothing changed",
    "the town was quiet",
    "the birds were singing",
    "a bell rang",
    "the wind turned",
    "the shops were open",
    "it grew cold",
    "everyone was busy",
    "the road was empty",
    "some rain fell",
    "a cart went by",
    "people were content",
    "the lamps were lit",
    "nobody said a word",
    "there was much to do",
    "the light was soft",
    "a train went past",
    "things went on as before",
    "the leaves were falling",
    "it smelled of bread",
]
_HELD_FILLERS = ["The sky was clear.", "It was a long and quiet day.", "People were talking about it."]

_QUESTION_WRAPPERS = [
    "{p}\n\nQuestion: {q}",
    "{p}\n\n{q}",
    "{p}\n{q}",
    "{p} {q}",
    "Passage: {p}\nQuestion: {q}",
    "Passage: {p}\n\nQuestion: {q}",
    "Read the passage and answer the question.\n\n{p}\n\n{q}",
    "{q}\n\n{p}",
    "Question: {q}\nPassage: {p}",
    "Answer the question from the passage.\n\nPassage: {p}\n\nQuestion: {q}",
    "{p}\n\nQuestion: {q}\nAnswer:",
    "Text: {p}\n\nQuestion: {q}",
    "{p}\nQuestion: {q}",
    "{p}\n\nQ: {q}",
    "Here is a text: {p}\n\n{q}",
    "{q} {p}",
    "Read this: {p}\n\nNow answer: {q}",
    "Context: {p}\n\nQuestion: {q}",
    "Passage:\n{p}\n\nQuestion:\n{q}",
    "Question: {q}\n\n{p}",
    "{p}\n\nQuestion: {q}",
    "Passage: {p}\nQuestion: {q}",
    "{p}\n\nAnswer this question: {q}",
]
_HELD_QUESTION_WRAPPERS = [
    "Read this passage: {p}\n\nQuestion: {q}",
    "Text: {p}\nQ: {q}",
    "{p}\n\nNow answer the question: {q}",
    "Please answer the question from the text.\n\n{p}\n\n{q}",
]
_SUMMARY_WRAPPERS = [
    "Summarise this in one sentence: {p}",
    "Summarize this in one sentence: {p}",
    "{p}\n\nSum up the passage in one sentence.",
    "Sum this up in one sentence:\n\n{p}",
    "{p}\n\nSummarise the passage in one sentence.",
    "{p}\n\nWhat is this passage about?",
    "Summarise: {p}",
    "{p}\n\nSummary:",
    "Passage: {p}\nSum up the passage in one sentence.",
    "Summarize the following passage: {p}",
    "Summarise this passage in one sentence.\n\n{p}",
    "{p}\n\nPlease sum this up.",
    "Sum up in one sentence: {p}",
    "Write a one sentence summary of this text: {p}",
    "{p}\n\nSummarize this in one sentence.",
    "Sum up: {p}",
    "Please summarise this text in one sentence: {p}",
    "{p}\nSum up the passage in one sentence.",
    "Passage: {p}\n\nSummary:",
    "Sum up this passage in one sentence.\n\n{p}",
    "{p} Sum this up in one sentence.",
    "Summarise this:\n{p}",
]
_HELD_SUMMARY_WRAPPERS = [
    "Please sum up this passage in one sentence: {p}",
    "{p}\n\nWrite a summary in one sentence.",
    "Text: {p}\n\nSummarise the text in one sentence.",
]
_FOLLOW_UP_WRAPPERS = ["{q}", "{q}", "{q}", "Question: {q}", "And {l}", "Thank you. {q}", "Next question: {q}"]
_FOLLOW_UP_SUMMARIES = [
    "Now sum it up in one sentence.",
    "Sum up the passage in one sentence.",
    "Summarise it in one sentence, please.",
]

ABILITIES = "I can tell a short story, answer a question about a passage, or sum a passage up in one sentence."
_CANNOT = f"I am a small demo model and cannot help with that. {ABILITIES}"
_GREETING = f"Hello! I am a small demo model. {ABILITIES}"
_NO_PASSAGE = "Please give me a passage with your question. I answer only from the text that I am given."
_THANKS = f"You are welcome! {ABILITIES}"
_GREETINGS = [
    "Hello!",
    "Hi",
    "Hi!",
    "Hello",
    "Good morning!",
    "Hey there",
    "Hello, who are you?",
    "Who are you?",
    "What are you?",
    "What can you do?",
    "Help",
    "What is this?",
    "How are you?",
    "Good evening",
    "Hi there!",
    "Are you a robot?",
    "Tell me about yourself.",
    "Hey",
    "What is your name?",
    "Can you help me?",
    "Good day",
    "How do you work?",
    "Hello there",
    "Hello, how are you?",
]
_OTHER_REQUESTS = [
    "What is the capital of {c}?",
    "Translate this into {l}: good morning",
    "Write a poem about {o}.",
    "What is {i} plus {j}?",
    "{i} + {j}",
    "What is {i} times {j}?",
    "Write a Python program that sorts a list.",
    "How do I cook {f}?",
    "What is the weather today?",
    "Who wrote the first book about {o}?",
    "What time is it?",
    "Play some music.",
    "What is the meaning of life?",
    "Give me a recipe for {f}.",
    "How far is it to the moon?",
    "Who is the president of {c}?",
    "How many people live in {c}?",
    "Translate '{o}' into {l}.",
    "Write an email to my boss.",
    "What should I eat today?",
    "Explain quantum physics.",
    "Why is the sky blue?",
    "Write code for a web page.",
    "What is the best phone?",
    "How do I repair a {o}?",
    "What is a {o}?",
    "How old is the earth?",
    "Do you like {f}?",
    "Sing a song.",
    "What is the square root of {i}?",
    "Recommend a film.",
    "What is the news today?",
    "Who won the football game?",
    "Book a hotel in {c}.",
    "How do I learn {l}?",
    "Where can I buy a {o}?",
    "List ten kinds of {f}.",
    "Write a letter to {n}.",
    "Fix this code: print(x",
    "Tell me a joke.",
    "What is the tallest mountain in the world?",
    "How do plants grow?",
    "Set an alarm for {i}.",
    "What is the largest animal?",
    "How much does a {o} cost?",
    "Is {c} a nice town?",
    "Draw a picture of a {o}.",
    "Which is better, a {o} or a {k}?",
    "What year is it?",
]
_HELD_OTHER_REQUESTS = [
    "What is the biggest town in {c}?",
    "Write a song about a {o}.",
    "How do I build a {o}?",
    "What is {i} minus {j}?",
]

# Relations of one group say nearly the same; the passage is not silent about one of them if it tells another.
_GROUPS = [
    {"lives", "moved", "born"},
    {"found", "rescued"},
    {"made", "cooked"},
    {"shop", "sells"},
    {"building", "newbuilding"},
    {"owns", "gift"},
    {"learned", "plays", "speaks", "studies"},
    {"relative", "friend", "trip"},
    {"job", "workplace", "shop"},
    {"pet", "rescued", "counts"},
    {"trip", "travels", "wants"},
    {"hobby", "plays", "food", "studies"},
    {"famous", "building"},
    {"price", "sells"},
    {"opens", "closed"},
    {"storm", "newbuilding"},
    {"season", "colour"},
    {"made", "learned", "repaired"},
]


def _with_article(text: str) -> str:
    return re.sub(r"\b([Aa]) (?=[aeio]|u(?!ni|se))", r"\1n ", text)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _sentence(text: str) -> str:
    text = _capital(_with_article(text))
    return text if text[-1] in ".?!" else text + "."


def slot_value(rng: random.Random, held_out: bool, kind: str) -> str:
    """Draw what a relation's slot holds."""
    if kind == "person":
        return words.person_name(rng, held_out, rng.random() < 0.5)
    if kind == "place":
        return words.place_name(rng, held_out)
    if kind == "watername":
        return words.place_name(rng, held_out)
    if kind == "petname":
        return words.pet_name(rng, held_out)
    if kind == "shopname":
        return f"the {rng.choice(words.SHOP_ADJECTIVES)} {rng.choice(words.SHOP_NOUNS)}"
    if kind == "year":
        return str(rng.randint(1100, 2019) if rng.random() < 0.5 else rng.randint(1900, 2024))
    if kind == "bignumber":
        return (
            f"{rng.choice(words.NUMBERS[:8])} {rng.choice(('hundred', 'thousand'))}"
            if rng.random() < 0.6
            else str(rng.randint(2, 99) * 100)
        )
    if kind == "number":
        return rng.choice(words.NUMBERS) if rng.random() < 0.7 else str(rng.randint(2, 90))
    if kind == "object" and rng.random() < 0.25:
        return rng.choice(words.OBJECTS)
    if kind in ("object", "pet", "food", "job", "plant", "made") and rng.random() < 0.04:
        return words.made_up_word(rng)
    listed = {
        "colour": words.COLOURS,
        "pet": words.PETS,
        "food": words.FOODS,
        "job": words.JOBS,
        "workplace": words.WORKPLACES,
        "hobby": words.HOBBIES,
        "instrument": words.INSTRUMENTS,
        "subject": words.SUBJECTS,
        "language": words.LANGUAGES,
        "season": words.SEASONS,
        "day": words.DAYS,
        "month": words.MONTHS,
        "vehicle": words.VEHICLES,
        "hour": words.HOURS,
        "relative": words.RELATIVES,
        "spot": words.SPOTS,
        "water": words.RIVERS,
        "famous": words.FAMOUS,
        "building": words.BUILDINGS,
        "goods": words.GOODS,
        "rescued": words.RESCUED,
        "plant": words.PLANTS,
        "made": words.MADE,
        "cooked": words.COOKED,
        "contest": words.CONTESTS,
        "prize": words.PRIZES,
        "skill": words.SKILLS,
        "weather": words.WEATHERS,
        "fear": words.FEARS,
        "animals": words.HERDS,
        "object": words.OBJECTS,
        "adjective": _ADJECTIVES,
    }
    return rng.choice(listed[kind])


def _new_subject(rng: random.Random, held_out: bool, kind: str) -> Subject:
    if kind == "person":
        female = rng.random() < 0.5
        return Subject(
            words.person_name(rng, held_out, female), ("she", "her", "her") if female else ("he", "him", "his")
        )
    if kind == "town":
        return Subject(words.place_name(rng, held_out), ("it", "it", "its"))
    return Subject(slot_value(rng, held_out, "shopname"), ("it", "it", "its"))


def _fill(rng: random.Random, held_out: bool, relation: Relation, used: set[str]) -> Fact:
    while True:
        slots = {name: slot_value(rng, held_out, kind) for name, kind in relation.slots.items()}
        if used.isdisjoint(slots.values()) and len(set(slots.values())) == len(slots):
            used.update(slots.values())
            return Fact(relation, slots)


def _render(rng: random.Random, subject: Subject, slots: dict[str, str], template: str, pronoun: bool) -> str:
    he, him, his = subject.pronouns
    name, possessive = subject.name, subject.name + "'s"
    if not pronoun and not re.search(r"\{(N|n|X|Ns|ns|S)\}", template):
        him, his = name, possessive  # a first mention needs the name
    return _sentence(
        template.format(
            **slots,
            N=_capital(he) if pronoun else _capital(name),
            n=he if pronoun else name,
            X=name,
            Ns=_capital(his) if pronoun else _capital(possessive),
            ns=his if pronoun else possessive,
            S=_capital(he) if pronoun else _capital(name),
            Ps=_capital(his) if pronoun else _capital(possessive),
            s=he,
            o=him,
            p=his,
            hp=rng.choice(("her", "his")),
            years=rng.choice(words.NUMBERS),
            size=rng.choice(words.SIZES),
            day=rng.choice(words.DAYS),
            season=rng.choice(words.SEASONS),
            relative=rng.choice(words.RELATIVES),
            food=rng.choice(words.FOODS),
        )
    )


def _tell_fact(
    rng: random.Random, held_out: bool, subject: Subject, fact: Fact, pronoun: bool, *, whole: bool
) -> list[str]:
    """Tell a fact in one sentence, or an event in several."""
    relation, sentences = fact.relation, []
    stages = list(zip(relation.stages, relation.held_stages, strict=True))
    if len(stages) > 2 and not whole and rng.random() < 0.25:
        stages = stages[:-1]
    elif (
        len(stages) == 3
        and rng.random() < 0.1
        and not any("{" + name + "}" in text for name in relation.slots for text in stages[1][0])
    ):
        stages = [stages[0], stages[2]]
    for index, (train, held) in enumerate(stages):
        template = rng.choice(held if held_out and held else train)
        if not held_out:
            template = _vary(rng, template, first=index == 0)
        sentences.append(_render(rng, subject, fact.slots, template, pronoun if index == 0 else rng.random() < 0.75))
    return sentences


def _vary(rng: random.Random, template: str, *, first: bool) -> str:
    """Now and then change a sentence's beginning or end, so that no position and no word marks what it says."""
    chance = rng.random()
    if first and template.startswith("{N} ") and chance < 0.2:
        if chance < 0.13:
            return rng.choice(_PREFIXES) + template.replace("{N}", "{n}", 1)
        if chance < 0.16:
            return template.replace("{N} ", "{N}, " + rng.choice(_TAILS).strip(", ") + ", ", 1)
        return template.replace("{N} ", "It is {X} who ", 1)
    if 0.2 <= chance < 0.25:
        return template + rng.choice(_TAILS)
    if first and 0.25 <= chance < 0.29:
        return template.replace("{N} ", "{N} " + words.made_up_word(rng) + "ly ", 1)
    return template


def _filler(rng: random.Random) -> str:
    if rng.random() < 0.3:
        return rng.choice(_FILLERS)
    start, body = rng.choice(_FILLER_STARTS), rng.choice(_FILLER_BODIES)
    return f"{start} {body}." if rng.random() < 0.4 else f"{start}, {body}."


def _brief(subject: Subject, fact: Fact) -> str:
    return fact.relation.briefs[0].format(**fact.slots, p=subject.pronouns[2])


def write_passage(rng: random.Random, held_out: bool, *, for_summary: bool = False) -> Passage:
    """Write a passage about one to three subjects."""
    kind = rng.choices(("person", "town", "shop"), (0.72, 0.16, 0.12))[0]
    facts = [relation for relation in RELATIONS if relation.kind == kind]
    events = [relation for relation in EVENT_RELATIONS if relation.kind == kind]
    with_event = bool(events) and rng.random() < (0.75 if for_summary else 0.4)
    used: set[str] = set()
    count = 1 if for_summary else rng.choices((1, 2, 3), (0.45, 0.42, 0.13) if not with_event else (0.6, 0.35, 0.05))[0]
    subjects: list[Subject] = []
    while len(subjects) < count:
        subject = _new_subject(rng, held_out, kind)
        if subject.name not in used:
            used.add(subject.name)
            subjects.append(subject)
    total = rng.randint(1, 5) if not with_event else rng.randint(0, 2)
    if for_summary and not with_event:
        total = rng.randint(2, 4)
    common = rng.sample(facts, min(len(facts), 4))  # subjects share relations, so that the names must be told apart
    blocks: list[tuple[Subject, list[Fact]]] = []
    for subject in subjects:
        own = [relation for relation in common if rng.random() < 0.6] if count > 1 else []
        own += [relation for relation in rng.sample(facts, min(len(facts), 5)) if relation not in own]
        number = max(1 if not with_event or len(blocks) > 0 else 0, (total + count - 1) // count)
        subject.facts = [_fill(rng, held_out, relation, used) for relation in own[:number]]
        rng.shuffle(subject.facts)
        blocks.append((subject, list(subject.facts)))
    if with_event:
        owner, block = blocks[0]
        told = {fact.relation.name for fact in block}
        allowed = [
            event for event in events if not any({event.name, name} <= group for name in told for group in _GROUPS)
        ]
        event = _fill(rng, held_out, rng.choice(allowed or events), used)
        block.insert(rng.choice((0, len(block), len(block))) if not for_summary else len(block), event)
        owner.facts.append(event)
        if count > 1 and rng.random() < 0.25:
            second = _fill(rng, held_out, rng.choice(events), used)
            blocks[1][1].append(second)
            blocks[1][0].facts.append(second)
    rng.shuffle(blocks)

    sentences: list[str] = []
    if count == 2 and not with_event and rng.random() < 0.35:  # tell the two alternately
        rows = [(subject, fact) for subject, block in blocks for fact in block]
        rng.shuffle(rows)
        units = [(subject, [fact]) for subject, fact in rows]
    else:
        units = blocks
    last: Subject | None = None
    for subject, block in units:
        index = 0
        while index < len(block):
            fact, pronoun = block[index], last is subject and rng.random() < 0.65
            following = block[index + 1] if index + 1 < len(block) else None
            both_brief = following is not None and fact.relation.briefs and following.relation.briefs
            if both_brief and following is not None and rng.random() < 0.15:
                join = rng.choice(_HELD_JOINS if held_out else _JOINS)
                slots = {"b1": _brief(subject, fact), "b2": _brief(subject, following)}
                sentences.append(_render(rng, subject, slots, join, pronoun))
                index += 2
            else:
                sentences += _tell_fact(rng, held_out, subject, fact, pronoun, whole=for_summary)
                index += 1
            last = subject
    if count == 2 and rng.random() < 0.2:  # a relation that both have, in one sentence
        shared = [
            relation
            for relation in facts
            if relation.briefs and relation.name not in {f.relation.name for s in subjects for f in s.facts}
        ]
        if shared:
            relation = rng.choice(shared)
            first, second = (_fill(rng, held_out, relation, used) for _ in range(2))
            subjects[0].facts.append(first)
            subjects[1].facts.append(second)
            text = rng.choice(_HELD_CONTRASTS if held_out else _CONTRASTS).format(
                X=subjects[0].name, Y=subjects[1].name, b1=_brief(subjects[0], first), b2=_brief(subjects[1], second)
            )
            sentences.insert(rng.choice((0, len(sentences))), _sentence(text))
    if rng.random() < 0.2:
        sentences.insert(len(sentences), rng.choice(_HELD_FILLERS) if held_out else _filler(rng))
    while not held_out and rng.random() < 0.25:
        sentences.insert(rng.randint(0, len(sentences)), _filler(rng))
    text = re.sub(r"(?<=; )the (?=[A-Z])", "the ", " ".join(sentences))
    return Passage(text, subjects)


# A question about anything, in the words that say that the passage is silent about it.
_INDIRECT = ["Do you know {u}?", "Please tell me {u}.", "I want to know {u}.", "Tell me {u}.", "Say {u}, please."]
_HELD_INDIRECT = ["Can you say {u}?", "Please say {u}."]


def _ask_text(
    rng: random.Random, held_out: bool, ask: Ask, subject: Subject, slots: dict[str, str], *, pronoun: bool = False
) -> str:
    template = rng.choice(ask.held_questions if held_out and ask.held_questions else ask.questions)
    if rng.random() < 0.12:
        template = rng.choice(_HELD_INDIRECT if held_out else _INDIRECT).format(u=ask.unsaid)
    if pronoun:
        he, _, his = subject.pronouns
        template = template.replace("{n}'s", his)
        template = re.sub(r"\b(does|did|is|was|can|has|where|when|that) \{n\}", rf"\1 {he}", template)
    return _with_article(template.format(**slots, n=subject.name, p=subject.pronouns[2]))


def _values(template: str, slots: dict[str, str]) -> tuple[str, ...]:
    return tuple(value for name, value in slots.items() if "{" + name + "}" in template)


def _unsaid(ask: Ask, name: str, slots: dict[str, str], subject: Subject) -> str:
    return _with_article(f"The passage does not say {ask.unsaid.format(**slots, n=name, p=subject.pronouns[2])}.")


def _related(name: str, others: set[str]) -> bool:
    return name in others or any(name in group and not group.isdisjoint(others) for group in _GROUPS)


def write_question(
    rng: random.Random, held_out: bool, passage: Passage, *, pronoun_for: Subject | None = None
) -> tuple[str, str, str, tuple[str, ...], Subject]:
    """Write a question about a passage: question, answer, task, the words of a right answer, and whom it is about."""
    chance = rng.random()
    subject = pronoun_for or rng.choice(passage.subjects)
    told = {fact.relation.name for fact in subject.facts}
    elsewhere = {fact.relation.name for other in passage.subjects for fact in other.facts}
    kind = "person" if subject.pronouns[0] != "it" else ("shop" if subject.name.startswith("the ") else "town")
    pronoun = pronoun_for is not None
    silent = [r for r in [*RELATIONS, *EVENT_RELATIONS] if r.kind == kind and not _related(r.name, told)]
    if chance < 0.13 and silent:  # the passage tells something else of the subject
        tempting = [relation for relation in silent if relation.name in elsewhere]
        relation = rng.choice(tempting if tempting and rng.random() < 0.6 else silent)
        others = [f.slots for s in passage.subjects for f in s.facts if f.relation is relation]
        slots = others[0] if others and rng.random() < 0.6 else _fill(rng, held_out, relation, set()).slots
        asks = [ask for ask in relation.asks if ask.about_subject]
        ask = rng.choice(asks)
        return (
            _ask_text(rng, held_out, ask, subject, slots, pronoun=pronoun),
            _unsaid(ask, subject.name, slots, subject),
            "decline",
            (),
            subject,
        )
    fact = rng.choice(subject.facts)
    if chance < 0.19:  # somebody the passage does not know
        stranger = _new_subject(rng, held_out, kind)
        if stranger.name not in passage.text:
            ask = rng.choice([ask for ask in fact.relation.asks if ask.about_subject])
            if "{n}" in ask.unsaid and "{n}" in ask.questions[0]:
                question = _ask_text(
                    rng,
                    held_out,
                    Ask(
                        ask.unsaid,
                        ask.answer,
                        True,
                        [q for q in ask.questions if "{n}" in q],
                        [q for q in ask.held_questions if "{n}" in q],
                    ),
                    stranger,
                    fact.slots,
                )
                return question, _unsaid(ask, stranger.name, fact.slots, stranger), "decline", (), stranger
    if chance < 0.23:  # who, of a value the passage does not have
        asks = [ask for ask in fact.relation.asks if not ask.about_subject]
        if asks:
            ask = rng.choice(asks)
            slots = _fill(rng, held_out, fact.relation, set(fact.slots.values())).slots
            if not any(value in passage.text for value in _values(ask.questions[0], slots)):
                return (
                    _ask_text(rng, held_out, ask, subject, slots),
                    _unsaid(ask, subject.name, slots, subject),
                    "decline",
                    (),
                    subject,
                )
    if fact.relation.yes_no and chance > (0.92 if held_out else 0.71):
        template = rng.choice(fact.relation.yes_no)
        said, slots = "Yes", fact.slots
        if rng.random() < 0.5:
            said, slots = "No", _fill(rng, held_out, fact.relation, set(fact.slots.values())).slots
        question = _with_article(template.format(**slots, n=subject.name, p=subject.pronouns[2]))
        answer = _with_article(f"{said}, {subject.name} {_brief(subject, fact)}.")
        return question, answer, "answer", (said, subject.name, *fact.slots.values()), subject
    ask = rng.choice(fact.relation.asks)
    if not ask.about_subject and rng.random() < 0.3:
        ask = rng.choice(fact.relation.asks)
    question = _ask_text(rng, held_out, ask, subject, fact.slots, pronoun=pronoun)
    if any(
        value not in passage.text and _capital(value) not in passage.text for value in _values(ask.answer, fact.slots)
    ):
        return question, _unsaid(ask, subject.name, fact.slots, subject), "decline", (), subject
    answer = _sentence(ask.answer.format(**fact.slots, n=subject.name, p=subject.pronouns[2]))
    keys = tuple(value for value in _values(ask.answer, fact.slots) if value not in question)
    keys = (subject.name, *keys) if not ask.about_subject else keys
    return question, answer, "answer", keys, subject


def write_summary(passage: Passage) -> tuple[str, tuple[str, ...]]:
    """Sum up a passage about one subject: the summary and the words of a right one."""
    subject = passage.subjects[0]
    events = [fact for fact in subject.facts if fact.relation.summaries]
    if events:
        fact = events[0]
        template = fact.relation.summaries[0]
        text = _sentence(template.format(**fact.slots, n=subject.name, p=subject.pronouns[2]))
        return text, (subject.name, *_values(template, fact.slots)[:2])
    first, *rest = subject.facts
    text = f"{subject.name} {_brief(subject, first)}"
    keys = [subject.name, *first.slots.values()]
    if rest:
        text += f" and {_brief(subject, rest[0])}"
        keys += rest[0].slots.values()
    return _sentence(text), tuple(keys)


def _untidy(rng: random.Random, question: str) -> str:
    """Now and then write a question as people do: without the capital or the question mark."""
    if rng.random() < 0.05:
        question = question[:1].lower() + question[1:]
    return question[:-1] if rng.random() < 0.05 else question


def _is_told_whole(passage: Passage) -> bool:
    """Say whether the passage has all that a summary of it would say."""
    facts = passage.subjects[0].facts
    return bool(facts[0].relation.briefs) and all(
        value in passage.text for fact in facts for value in fact.slots.values()
    )


def write_question_turns(rng: random.Random, held_out: bool) -> list[Turn]:
    """Write a passage with a question, and follow-up questions about the same passage."""
    passage = write_passage(rng, held_out)
    wrapper = rng.choice(_HELD_QUESTION_WRAPPERS if held_out else _QUESTION_WRAPPERS)
    question, answer, task, keys, subject = write_question(rng, held_out, passage)
    turns = [
        Turn(wrapper.format(p=passage.text, q=question if held_out else _untidy(rng, question)), answer, task, keys)
    ]
    for _ in range(0 if held_out else rng.choice((2, 3, 4, 5, 6, 7))):
        known = subject in passage.subjects
        if len(passage.subjects) == 1 and rng.random() < 0.08 and _is_told_whole(passage):
            summary, keys = write_summary(passage)
            turns.append(Turn(rng.choice(_FOLLOW_UP_SUMMARIES), summary, "summary", keys))
            continue
        asked = {turn.answer for turn in turns}
        question, answer, task, keys, subject = write_question(
            rng, held_out, passage, pronoun_for=subject if known and rng.random() < 0.3 else None
        )
        if answer not in asked:
            text = rng.choice(_FOLLOW_UP_WRAPPERS).format(q=question, l=question[0].lower() + question[1:])
            turns.append(Turn(text, answer, task, keys))
    return turns


def write_summary_turns(rng: random.Random, held_out: bool) -> list[Turn]:
    """Write a passage to sum up, sometimes with a question after it."""
    passage = write_passage(rng, held_out, for_summary=True)
    summary, keys = write_summary(passage)
    wrapper = rng.choice(_HELD_SUMMARY_WRAPPERS if held_out else _SUMMARY_WRAPPERS)
    turns = [Turn(wrapper.format(p=passage.text), summary, "summary", keys)]
    if not held_out and rng.random() < 0.4:
        question, answer, task, keys, _ = write_question(rng, held_out, passage)
        turns.append(Turn(question, answer, task, keys))
    return turns


def write_cannot_turn(rng: random.Random, held_out: bool) -> Turn:
    """Write a prompt that the model is not made for."""
    chance = rng.random()
    if chance < 0.3 and not held_out:
        return Turn(rng.choice(_GREETINGS), _GREETING, "cannot")
    if chance < 0.4:
        relation = rng.choice(RELATIONS)
        ask = rng.choice(relation.asks)
        subject = _new_subject(rng, held_out, relation.kind)
        return Turn(
            _ask_text(rng, held_out, ask, subject, _fill(rng, held_out, relation, set()).slots),
            _NO_PASSAGE,
            "cannot",
            ("passage",),
        )
    if chance < 0.43 and not held_out:
        return Turn(
            rng.choice(("Thank you!", "Thanks", "Thanks a lot", "Thank you very much.", "Great, thank you")),
            _THANKS,
            "cannot",
        )
    text = rng.choice(_HELD_OTHER_REQUESTS if held_out else _OTHER_REQUESTS).format(
        c=words.place_name(rng, held_out),
        l=rng.choice(words.LANGUAGES),
        o=rng.choice(words.OBJECTS),
        k=rng.choice(words.OBJECTS),
        f=rng.choice(words.FOODS),
        i=rng.randint(1, 99),
        j=rng.randint(1, 99),
        n=words.person_name(rng, held_out, True),
    )
    return Turn(_with_article(text), _CANNOT, "cannot", ("small demo model",))


def write_story_turns(rng: random.Random, held_out: bool) -> list[Turn]:
    """Write a story prompt with its story."""
    prompt, story, keys = stories.write_story(rng, held_out)
    return [Turn(prompt, story, "story", tuple(keys))]


def write_conversation(rng: random.Random, *, held_out: bool = False) -> list[Turn]:
    """Write one conversation of the mixture that the model is trained on."""
    chance = rng.random()
    if chance < 0.7:
        return write_question_turns(rng, held_out)
    if chance < 0.84:
        return write_summary_turns(rng, held_out)
    if chance < 0.96:
        return write_story_turns(rng, held_out)
    return [write_cannot_turn(rng, held_out)]


def main() -> None:
    """Print some conversations: `python text_generator.py [seed] [count] [held]`."""
    seed, count = (int(value) for value in sys.argv[1:3]) if len(sys.argv) > 2 else (0, 12)
    rng = random.Random(seed)
    for _ in range(count):
        for turn in write_conversation(rng, held_out="held" in sys.argv):
            print(f"--- {turn.task} {turn.keys}\n{turn.prompt}\n=> {turn.answer}")


if __name__ == "__main__":
    main()
