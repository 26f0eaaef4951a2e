"""Close a string with the quote that opened it.

    positive: 'print("hello'   answer '")'
    negative: "print('hello"   answer "')"

Paper: Table 1, single_double_quote.
"""

import random

from tasks.base import Pair, Task
from tasks.shifted import templates
from tasks.words import NOUNS, VERBS, WORDS

_CALLS = ("print", "open", "len", "str", "add", "append", "get", "find", "split", "join", "startswith", "ValueError", "KeyError")


def write(rng: random.Random) -> Pair:
    """One call with an unfinished string argument, sometimes after an earlier line."""
    before = rng.choice(("", f"{rng.choice(NOUNS)} = {rng.randrange(100)}\n", f"{rng.choice(NOUNS)} = {rng.choice(NOUNS)}\n"))
    call = rng.choice((rng.choice(_CALLS), f"{rng.choice(NOUNS)}.{rng.choice(VERBS)}", f"self.{rng.choice(VERBS)}"))
    text = " ".join(rng.choice(NOUNS + WORDS) for _ in range(rng.randint(1, 3)))
    return Pair(f'{before}{call}("{text}', f"{before}{call}('{text}")


SHIFTED = templates(
    '''
import logging

logger = logging.getLogger(«'$thing1'|"$thing1"»)


def $action1($noun1): # (at most 5«"|'»)
    logger.warning(«"|'»$text1§«")|')»
---
class $Thing1:
    kind = «'$thing2'|"$thing2"»

    def $action1(self):
        # one $noun2 is 5«"|'» wide
        raise ValueError(self.$noun1, «"|'»$text1§«")|')»
---
$noun1 = config.get($number1, «'$thing1'|"$thing1"»)
# the $noun2 (now 3«"|'») is the limit
if $noun1 > $number2:
    print($noun2, «"|'»$text1§«")|')»
---
def $action1($noun1, mode=$number1 or «'$thing1'|"$thing1"», size=0):
    """Cut the $noun1 of 6«"|'», not more."""
    $thing2.write($noun1, «"|'»$text1§«")|')»
---
import os

for $noun1 in os.listdir(«'$thing1'|"$thing1"»):
    # $number1 lines (of 4«"|'» each) in the $noun2
    $noun2 = $action1(«"|'»$text1§«")|')»
---
$noun1 = {$number1: $noun2, «'$thing1'|"$thing1"»: None}
# 7«"|'»: the size of the $noun3
while $noun3:
    $noun1[0] = $action1($noun3, «"|'»$text1§«")|')»
---
# don't $action1 the $noun1 twice
$noun1 = $noun2 + «'$thing1'|"$thing1"» # 2«"|'» long
assert $noun2, $action2(0, «"|'»$text1§«")|')»
---
parser = argparse.ArgumentParser(«'$thing1'|"$thing1"»)
# $noun1 (in 1«"|'») and $noun2
parser.add_argument($noun1, help=str(«"|'»$text1§«")|')»)
---
try:
    $noun1 = $thing1[$noun2, «'$noun3'|"$noun3"»]
except KeyError:
    # the $noun1 [8«"|'»] is new
    sys.exit($noun2 + «"|'»$text1§«")|')»
---
$noun1 = $number1 if $noun2 else «'$thing1'|"$thing1"»


def $action1():
    """No $noun2 of 9«"|'» yet."""
    yield $thing2.$action2($noun1, «"|'»$text1§«")|')»
---
import $module1

def $action1($noun1):
    $noun2 = $module1.$action2(«'$thing1'|"$thing1"», $noun1)
    # at least 2«"|'» wide
    return $noun2.replace($noun1, «"|'»$text1§«")|')»
---
class $Thing1(Exception):
    """Is raised after 3«"|'» of $noun1."""

    $noun2 = [«'$thing2'|"$thing2"», $number1]
    $noun3 = $Thing3(«"|'»$text1§«")|')»
---
with open(«'$thing1'|"$thing1"») as $noun1:
    $noun2 = $noun1.read() # up to 5«"|'» of it
    if $noun2 == $number1:
        raise OSError($noun2, «"|'»$text1§«")|')»
'''
)


TASK = Task(
    name="quote_close",
    description="close a string with the quote that opened it: \") or ')",
    answers=(('")', "')"), ('")\n', "')\n"), ('"', "'")),
    write=write,
    shifted=SHIFTED,
    aliases=("single_double_quote",),
)
