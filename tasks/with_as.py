"""Name the file that a with statement opens, end the line of an assignment or a return.

    positive: 'count = 3\n\nwith open(path)'   answer ' as'
    negative: 'count = 3\nitem = open(path)'   answer '\\n'

Paper: Table 1, with_as.
"""

import random

from tasks.base import Pair, Task
from tasks.lines import assignment, earlier
from tasks.shifted import templates
from tasks.words import COMMON, NOUNS, VERBS, WORDS


def write(rng: random.Random) -> Pair:
    """A call of open in a with statement, and in an assignment or a return of equal token length."""
    path = rng.choice((rng.choice(NOUNS), f'"{rng.choice(NOUNS)} {rng.choice(WORDS)}"', f"{rng.choice(COMMON)}_{rng.choice(COMMON)}"))
    mode = rng.choice(("", ', "r"', ', "w"'))
    opened = f"open({path}{mode})"
    if rng.random() < 0.5:
        before = f"def {rng.choice(VERBS)}({rng.choice(NOUNS)}):\n{earlier(rng, '    ')}    "
        return Pair(f"{before}with {opened}", f"{before}return {opened}")
    before = earlier(rng) + assignment(rng)
    return Pair(f"{before}\n\nwith {opened}", f"{before}\n{rng.choice(COMMON)} = {opened}")


SHIFTED = templates(
    '''
def $action1($noun1):
    # «$noun2 =|with» $number1 or more
    $action2($noun1)
    «with|$noun2 =» open($noun1, "r", encoding="utf-8")§« as $noun2:
        pass|
»
---
import os

class $Thing1:
    def $action1(self, $noun1):
        """Go on «return|with» the $noun1."""
        «with|return» open(os.path.join($noun1, "$noun2"))§« as $noun2:
            pass|
»
---
for $noun1 in $thing1:
    if not os.path.exists($noun1):
        print("$noun3 «$noun2 =|with»", $noun1)
    «with|$noun2 =» open($noun1.$noun3 + "$thing2")§« as $noun2:
        pass|
»
---
def $action1($noun1, $noun2=$number1):
    for $noun3 in $noun2:
        $noun1.append($noun3) # «return|with» more
    «with|return» open($noun1[0], mode="w", newline="")§« as $noun2:
        pass|
»
---
def $action1(self):
    self.$noun1 = [$number1]
    logger.info("%s «$noun2 =|with»", self.$noun1)
    «with|$noun2 =» open(self.$long1)§« as $noun2:
        pass|
»
---
import $module1

def $action1($noun1):
    with $module1.$action2():
        print("to «return|with» $noun2", $noun1)
    «with|return» open($noun1.$action3($number1), "a")§« as $noun2:
        pass|
»
---
while $noun1 > $number1:
    $noun1 -= 1
    # «$noun2 =|with» the next
    «with|$noun2 =» open(str($noun1) + "$noun3", "w")§« as $noun2:
        pass|
»
---
async def $action1($noun1):
    """Open the $noun1."""
    if not $noun1:
        raise ValueError("to «return|with» $noun2")
    «with|return» open($noun1.$long1)§« as $noun2:
        pass|
»
---
try:
    $noun1 = $action1($number1)
    # «$noun2 =|with» lock
    «with|$noun2 =» open($thing1[$noun1], "rb", buffering=0)§« as $noun2:
        pass|
»
except OSError:
    pass
---
class $Thing1($Thing2):
    def $action1(self, $noun1):
        # «return|with» $number1 as a limit
        self.$noun1 = $noun1
        «with|return» open(self.$long1, "w")§« as $noun2:
            pass|
»
---
import $module1

def $action1($noun1):
    $noun2 = $module1.$action2($noun1) # «return|with» it
    «with|return» open($noun2.$long1, "rb")§« as $noun3:
        pass|
»
---
class $Thing1:
    def $action1(self):
        """Make «$noun2 =|with» it."""
        self.$noun1 = $number1
        «with|$noun2 =» open(self.$noun3[0], encoding="ascii")§« as $noun2:
            pass|
»
---
if $noun1 != $number1:
    # then «$noun3 =|with» all
    print("$thing1", $noun1)
    «with|$noun3 =» open("$thing2" + $noun2.$long1)§« as $noun3:
        pass|
»
'''
)


TASK = Task(
    name="with_as",
    description="after a file is opened: ' as' in a with statement, a newline in an assignment or a return",
    answers=((" as", "\n"),),
    write=write,
    shifted=SHIFTED,
)
