"""What the toy model is taught: facts out of the documentation that every Python carries.

A fact is a few ways to ask one thing, and its answer: the first sentences of a docstring, or of a
topic of ``pydoc``. What does not come from Python's documentation stands in this file.
"""

import contextlib
import importlib
import inspect
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pydoc_data.topics import topics

MODULES = """
builtins os os.path sys math cmath json re itertools functools operator collections
collections.abc pathlib random string datetime time calendar subprocess threading asyncio socket
hashlib hmac base64 csv copy glob shutil tempfile textwrap typing types uuid enum dataclasses heapq
bisect array queue statistics decimal fractions struct zlib gzip zipfile tarfile pickle sqlite3
logging argparse contextlib inspect traceback unittest urllib.parse urllib.request http.client
html secrets io platform signal multiprocessing concurrent.futures configparser difflib fnmatch
getpass locale pprint select selectors ssl tomllib warnings weakref timeit ast dis
""".split()  # noqa: SIM905 - a list of strings would be eighty lines long
TYPES_WITH_METHODS = [str, list, dict, set, tuple, bytes, int, float]
FUNCTION_QUESTIONS = [
    "What does {} do?",
    "What does {} do?",
    "What does {}() do?",
    "Explain {}.",
    "What is {}?",
    "Tell me about {}.",
    "what does {} do",
    "What does `{}` do?",
    "What is {}() for?",
]
THING_QUESTIONS = [
    "What is {}?",
    "What is {}?",
    "What is a {}?",
    "Explain {}.",
    "Tell me about {}.",
    "What does {} do?",
    "what is {}",
    "What is `{}`?",
]
MODULE_QUESTIONS = [
    "What is the {} module for?",
    "What is the {} module?",
    "What does the {} module do?",
    "Tell me about the {} module.",
    "Explain the {} module.",
    "What is {}?",
]
TOPIC_QUESTIONS = [
    "What is the {} topic about?",
    "Tell me about {} in Python.",
    "What does Python say about {}?",
    "Explain {} in Python.",
]
TOY = "I am the toy model of Butterfly."
SCOPE = "I was trained on the documentation of Python and know a little about it."
UNKNOWN = "I do not know. I am only a toy model that has read the documentation of Python."
OWN_FACTS = {
    f"{TOY} {SCOPE}": "Who are you?|What are you?|Introduce yourself.|What is your name?",
    f"Hello! {TOY} Ask me about Python.": "Hello!|Hello|Hi|Hi!|Hello, who are you?|Good morning!",
    "Butterfly serves one large model with the machines you already have. Each node holds some of "
    "its layers.": "What is Butterfly?|Tell me about Butterfly.|What does Butterfly do?",
    "Ask me what a function or a module of Python does, for example: What does len do?": (
        "What can you do?|Help|What can I ask you?|How can you help me?"
    ),
    "Python is a programming language. Its standard library has modules for files, text, numbers "
    "and networks.": "What is Python?|Tell me about Python.|Explain Python.",
    "You are welcome.": "Thank you.|Thanks!|Thank you!|Thanks",
    "Goodbye!": "Goodbye.|Bye!|Bye|See you!",
    UNKNOWN: (
        "What is the capital of France?|Who won the world cup?|What is the weather today?|"
        "Tell me a joke.|What is the meaning of life?|How old are you?|Write a poem.|"
        "What is the capital of Germany?|Who is the president?|How do I cook rice?|"
        "What is love?|Where is Berlin?|Translate this to French.|What time is it?|"
        "Who wrote Hamlet?|How far is the moon?|Recommend a film.|What is a dog?"
    ),
}


@dataclass(frozen=True)
class Fact:
    """Ways to ask one thing, and its answer; ``weight`` says how often it is practised."""

    questions: Sequence[str]
    answer: str
    weight: float = 1.0


def first_sentences(text: str, length_max: int = 150) -> str | None:
    """The first sentences of ``text`` that fit in ``length_max`` characters, or nothing usable."""
    paragraphs = [" ".join(p.split()) for p in text.split("\n\n")]
    prose = [p for p in paragraphs if re.match(r'["A-Z][\w"\']*( |\.$)', p) and "->" not in p]
    if not prose or not prose[0].isascii():
        return None
    taken = ""
    for sentence in re.findall(r".+?(?:(?<!e\.g)(?<!i\.e)[.:!?](?=\s|$)|$)", prose[0]):
        if len(taken) + len(sentence) > length_max:
            break
        taken += sentence
    taken = taken.strip()
    if taken and taken[-1] not in ".!?":
        taken = taken.rstrip(":,;") + "."
    return taken if len(taken) >= 12 and taken.count("(") == taken.count(")") else None


def ask(templates: Sequence[str], name: str) -> list[str]:
    """All questions about ``name``; a template that occurs twice is asked twice as often."""
    return [template.format(name) for template in templates]


def documented_members(owner: object, prefix: str) -> Iterator[Fact]:
    """Facts about the public functions, methods and classes of a module or type."""
    public = getattr(owner, "__all__", None) or [n for n in dir(owner) if not n.startswith("_")]
    for name in sorted(public):
        member = getattr(owner, name, None)
        if not callable(member):
            continue
        own = member.__doc__  # inspect.getdoc would also find that of a base class
        answer = first_sentences(inspect.cleandoc(own) if isinstance(own, str) else "")
        if answer in {None, "An enumeration."}:
            continue
        templates = THING_QUESTIONS if inspect.isclass(member) else FUNCTION_QUESTIONS
        common = prefix in {"", "str.", "list.", "dict.", "os.path.", "math.", "json."}
        yield Fact(ask(templates, prefix + name), answer, weight=2.0 if common else 1.0)


def collect_facts() -> list[Fact]:
    """Everything that the toy is asked in training."""
    facts: list[Fact] = []
    for module_name in MODULES:
        module = importlib.import_module(module_name)
        prefix = "" if module_name == "builtins" else module_name + "."
        facts.extend(documented_members(module, prefix))
        if answer := first_sentences(inspect.getdoc(module) or "", 200):
            facts.append(Fact(ask(MODULE_QUESTIONS, module_name), answer, weight=3.0))
    for owner in TYPES_WITH_METHODS:
        facts.extend(documented_members(owner, owner.__name__ + "."))
    for topic, text in sorted(topics.items()):
        prose = text.partition("*" * 5)[2].lstrip("*") or text
        if topic.isalpha() and (answer := first_sentences(prose, 200)):
            facts.append(Fact(ask(TOPIC_QUESTIONS, topic.lower()), answer))
    for answer, questions in OWN_FACTS.items():
        facts.append(Fact(questions.split("|"), answer, weight=12.0))
    zen = ["What is the Zen of Python?", "Recite the Zen of Python.", "Import this."]
    return [*facts, Fact(zen, zen_of_python(), weight=12.0)]


def zen_of_python() -> str:
    """The text of the module ``this``, which prints itself when imported."""
    with contextlib.redirect_stdout(io.StringIO()):
        import this
    shift = dict(this.d)
    return "".join(shift.get(letter, letter) for letter in this.s)


def plain_text() -> list[str]:
    """Paragraphs of the language reference, for completions without a chat."""
    paragraphs = [p for _, text in sorted(topics.items()) for p in text.split("\n\n")]
    joined = [" ".join(p.split()) for p in paragraphs]
    return [p for p in joined if 80 <= len(p) <= 700 and p.isascii() and p[0].isupper()]
