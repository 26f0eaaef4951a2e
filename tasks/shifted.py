"""Writers of shifted prompts, made from templates.

Shifted prompts are longer and more like real programs than a task's plain ones, and contain what misleads a detector of single tokens:
an earlier string in the other kind of quote, an earlier loop of the other kind. A template is the text of two programs:

    $noun1 = get(«'|"»$thing1«'|"»)
    print(«"|'»$text1§«")|')»

«FIRST|SECOND»   the first part is in the positive program, the second in the negative one
§                where the prompt ends; the answer follows, and the rest of a complete program
$noun1, $Noun1   a random word, in lower case or capitalized; words of one kind with different numbers differ

The kinds of words are the keys of `WORDS`. Each split has its own words, as it has its own templates.
"""

from __future__ import annotations

import random
import re
import string
from dataclasses import dataclass
from functools import cache

from tasks.base import Pair, split_of_number
from tasks.words import NOUNS

THINGS = tuple(
    "account address album answer article balance basket branch budget camera category channel chapter client cluster command comment "
    "company contact context course customer database deadline department deposit device discount document driver employee engine "
    "envelope factory folder formula gallery guest header holiday host invoice journal keyboard ladder ledger library license location "
    "machine manager market member memory meeting merchant movie network notice office package parcel partner passenger password payment "
    "phone player policy portal printer profile project question quota receipt recipe region report request reserve response reward "
    "route sample schedule screen section sensor server session shipment signal station student subject supplier survey switch symbol "
    "teacher thread ticket transfer vehicle vendor version village visitor volume voucher warehouse website window worker".split()
)
ACTIONS = tuple(
    "accept allocate announce archive assign attach calculate cancel collect combine compare compile compute configure connect convert "
    "decode deliver describe detach detect discard download encode estimate evaluate execute export extract fetch flush format generate "
    "handle inspect install invoke launch locate lookup measure migrate monitor normalize notify observe pause prepare process publish "
    "receive refresh register release rename repair replace resolve restore resume retry review scan search select serialize submit "
    "subscribe transform translate update upload validate verify visit".split()
)
MODULES = tuple(
    "argparse asyncio base64 bisect collections contextlib csv datetime decimal functools getpass glob heapq itertools json logging math "
    "operator pathlib pickle platform locale random shutil secrets socket sqlite3 statistics struct subprocess tempfile textwrap threading "
    "timeit uuid zipfile".split()
)
COUNTERS = tuple(
    "index number row column count step page year day month hour minute week level digit size width height total score".split()
)
NAMES = tuple(noun for noun in NOUNS if noun not in (*COUNTERS, "result", "input", "output", "list", "next"))
NUMBERS = tuple(str(number) for number in range(2, 100))
_QUALITIES = tuple(
    "previous original temporary available expected maximum minimum requested remaining additional alternative automatic complete "
    "different external internal historical individual official optional permanent preferred primary private reliable "
    "secondary separate typical visible".split()
)
_MEASURES = tuple(
    "threshold description position duration capacity frequency reference signature strategy template variable priority percentage "
    "permission preference identifier quantity attachment certificate calculation".split()
)
_TROUBLES = (
    "could not connect to the",
    "waiting for a reply of the",
    "nothing was found in the",
    "the limit is exceeded for the",
    "please check the name of the",
    "no permission to change the",
    "successfully uploaded the",
    "still looking for the",
    "the format is wrong in the",
    "there is no space left for the",
    "an old copy exists of the",
    "unexpected characters in the",
    "cannot understand the",
    "skipping the rest of the",
    "switching back to the",
    "this may take long for the",
    "nobody has asked for the",
    "giving up on the",
    "using the defaults of the",
    "trying again with the",
)
WORDS: dict[str, tuple[str, tuple[tuple[str, ...], ...]]] = {  # kind: what joins a word's parts, and a list for each part
    "noun": ("", (NAMES,)),
    "thing": ("", (THINGS,)),
    "action": ("", (ACTIONS,)),
    "module": ("", (MODULES,)),
    "counter": ("", (COUNTERS,)),
    "number": ("", (NUMBERS,)),
    "long": ("_", (_QUALITIES, _MEASURES)),
    "text": (" ", (_TROUBLES, _QUALITIES, THINGS)),
}
_CHOICE = re.compile(r"«([^|»]*)\|([^»]*)»")
_END = "§"


class _Text(string.Template):
    idpattern = "[A-Za-z]+[0-9]"


@dataclass(frozen=True)
class Template:
    """A writer of pairs. own_answers: the answers of a pair are the words that follow its prompts, and not those of the task."""

    text: str
    split: str
    own_answers: bool = False

    def __call__(self, rng: random.Random) -> Pair:
        (positive, first), (negative, second) = self.programs(rng)
        answers = (_first_word(first), _first_word(second)) if self.own_answers else None
        return Pair(positive, negative, answers, (first, second))

    def programs(self, rng: random.Random) -> tuple[tuple[str, str], tuple[str, str]]:
        """(prompt, what follows it) of the positive and of the negative program."""
        text = _filled(self.text, self.split, rng)
        return _cut(_CHOICE.sub(r"\1", text)), _cut(_CHOICE.sub(r"\2", text))


def templates(texts: str, own_answers: bool = False) -> tuple[Template, ...]:
    """The templates in a text, with lines of '---' between them."""
    cut = texts.strip("\n").split("\n---\n")
    return tuple(Template(text, split_of_number(number), own_answers) for number, text in enumerate(cut))


def _cut(program: str) -> tuple[str, str]:
    prompt, rest = program.split(_END)
    return prompt, rest


def _first_word(text: str) -> str:
    found = re.match(r" ?\w+", text)
    assert found, text
    return found[0]


def _filled(text: str, split: str, rng: random.Random) -> str:
    """A template's text with random words of a split."""
    template = _Text(text)
    names = sorted({name.lower() for name in template.get_identifiers()})
    words: dict[str, str] = {}
    for kind in sorted({name[:-1] for name in names}):
        same = [name for name in names if name[:-1] == kind]
        for name, word in zip(same, _words(kind, split, len(same), rng), strict=True):
            words |= {name: word, name.capitalize(): word.capitalize()}
    return template.substitute(words)


def _words(kind: str, split: str, count: int, rng: random.Random) -> list[str]:
    """Different random words of a kind."""
    drawn = [rng.sample(words, count) for words in _words_of(kind, split)]
    return [WORDS[kind][0].join(parts) for parts in zip(*drawn, strict=True)]


@cache
def _words_of(kind: str, split: str) -> list[list[str]]:
    """A split's words of each list of a kind: the words are dealt like the templates."""
    return [[word for number, word in enumerate(words) if split_of_number(number) == split] for words in WORDS[kind][1]]
