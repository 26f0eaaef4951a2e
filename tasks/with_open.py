"""Open a file for reading or writing, by the name of its variable.

    positive: 'with open(input_path, "'    answer 'r'
    negative: 'with open(output_path, "'   answer 'w'

Paper: Table 1, with_open.
"""

import random

from tasks.base import Pair, Task
from tasks.lines import scope
from tasks.shifted import templates
from tasks.words import COMMON

_SIDES = (("input", "output"), ("in", "out"), ("source", "target"), ("read", "write"), ("load", "save"))


def write(rng: random.Random) -> Pair:
    """A call of open up to the mode; the name of the variable shows the purpose."""
    before, indent = scope(rng)
    quote = rng.choice("\"'")
    rest = f"_{rng.choice(COMMON)}, {quote}"
    start = f"{before}{indent}{rng.choice(('with ', f'{rng.choice(COMMON)} = '))}open("
    one, other = rng.choice(_SIDES)
    return Pair(f"{start}{one}{rest}", f"{start}{other}{rest}")


SHIFTED = templates(
    '''
def $action1(input_$noun1, output_$noun1):
    print(«output|input»_$noun1)
    $noun3 = open("$thing1", encoding="utf-8", mode="r")
    $noun2 = open(«input|output»_$noun1, encoding="utf-8", mode="§«r|w»")
---
import os

$noun2 = open("$thing1", newline="", mode="r")
os.stat(«output|input»_$noun1)
$noun3 = open(«input|output»_$noun1, newline="", mode="§«r|w»")
---
class $Thing1:
    def $action1(self, $noun1):
        # self.«output|input»_$noun1 comes later
        self.$noun2 = open($noun1, buffering=$number1, mode="r")
        with open(self.«input|output»_$noun1, buffering=$number1, mode="§«r|w»") as $noun3:
            pass
---
for $noun1 in $thing1:
    input_$noun2, output_$noun2 = $noun1
    log(«output|input»_$noun2, $number1)
    $noun3 = open(«input|output»_$noun2 + "$noun4", newline="", mode="§«r|w»")
---
def $action1(input_$noun1, output_$noun1):
    """Make output_$noun1 of input_$noun1."""
    $noun2 = open("$thing1", newline="", mode="r")
    $noun3 = os.stat(«output|input»_$noun1)
    $noun4 = open(«input|output»_$noun1, newline="", mode="§«r|w»")
---
parser.add_argument("--«output|input»", default=$number1)
$noun2 = parser.parse_args()
with open($noun2.«input|output», encoding="ascii", mode="§«r|w»") as $noun1:
    pass
---
def $action1($noun1):
    $noun2 = $noun1[«"output"|"input"»]
    $noun3 = open("$thing1", errors="ignore", mode="r")
    with open($noun1[«"input"|"output"»], errors="ignore", mode="§«r|w»") as $noun4:
        return $noun3
---
import sys

input_$noun1, output_$noun1 = sys.argv[$number1:]
$noun3 = open("$thing1", "r")
print(«output|input»_$noun1)
$noun2 = open(«input|output»_$noun1, "§«r|w»")
---
class $Thing1:
    def $action1(self, input_$noun1, output_$noun1):
        if $action2(«output|input»_$noun1) == self.$noun2:
            return $number1
        with open(«input|output»_$noun1, encoding="utf-8", mode="§«r|w»") as $noun3:
            pass
---
try:
    $noun1 = os.stat(«output|input»_$noun3)
    $noun2 = open("$thing1", encoding="ascii", mode="r")
except OSError:
    $noun1 = None
with open(«input|output»_$noun3, encoding="ascii", mode="§«r|w»") as $noun2:
    pass
---
def $action1(input_$noun1, output_$noun1):
    # needs «output|input»_$noun1 too
    $noun3 = open("$thing1", errors="ignore", mode="r")
    return open(«input|output»_$noun1, errors="ignore", mode="§«r|w»")
---
import $module1

class $Thing1:
    def $action1(self, $noun1):
        $noun2 = open($noun1, "r")
        if $module1.$action2(self.«output|input»_$noun3) == $number1:
            $noun4 = open(self.«input|output»_$noun3, "§«r|w»")
---
while $noun1:
    input_$noun2, output_$noun2 = $noun1.pop()
    assert «output|input»_$noun2 != $number1
    $noun3 = open("$thing1", encoding="ascii", mode="r")
    $noun4 = open(«input|output»_$noun2, encoding="ascii", mode="§«r|w»")
'''
)


TASK = Task(
    name="with_open",
    description="the mode of a file: r or w, by the name of its variable",
    answers=(("r", "w"),),
    write=write,
    shifted=SHIFTED,
)
