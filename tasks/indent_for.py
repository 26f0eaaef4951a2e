"""Indent the body of a for loop one step deeper than its header.

    positive: 'def load(path):\n    total = 3\nfor item in data:'       answer '\\n    ' (three or four spaces, as the tokenizer cuts)
    negative: 'def load(path):\n    total = 3\n    for item in data:'   answer '\\n        '

Paper: Table 1, indent_for.
"""

import random

from tasks.base import Pair, Task
from tasks.lines import assignment, condition
from tasks.shifted import templates
from tasks.words import COMMON, VERBS


def write(rng: random.Random) -> Pair:
    """A block of one or two lines, then the header of a loop: after the block in one prompt, inside it in the other."""
    name, item, source = rng.sample(COMMON, 3)
    header = rng.choice((f"def {rng.choice(VERBS)}({name}):", f"if {condition(rng)}:", f"while {name}:"))
    block = "".join(f"\n    {assignment(rng)}" for _ in range(rng.randint(1, 2)))
    loop = f"for {item} in {rng.choice((source, f'range({rng.randrange(100)})'))}:"
    return Pair(f"{header}{block}\n{loop}", f"{header}{block}\n    {loop}")


SHIFTED = templates(
    '''
«|for $noun4 in $thing2: $action3($noun4)
»def $action1($noun1):
    """Read the $thing1."""
    $noun2 = $action2($noun1)
«    for $noun4 in $thing2: $action3($noun4)
|»«|    »for $noun3, $noun5 in $noun1.$long1:§
«|    »    pass
---
«|for $noun1 in $thing1:
    $action1($noun1)
»def $action2($noun2):
«    $noun3 = $number1
|»    if $noun2:
        return 0
«    for $noun1 in $thing1:
        $action1($noun1)
|        $noun3 = $number1
»«|    »for $noun4 in $action3($noun5, $number2):§
«|    »    pass
---
«|print("for $noun5 see", $noun4)
»class $Thing1:
    $noun1 = $number1
    $noun2 = {}
«    print("see for $noun5", $noun4)
|»«|    »for $noun3 in range($number2, $number3):§
«|    »    pass
---
«|for $noun1 in $noun2: print($noun1)
»if $thing1.$noun3 is None:
    # $noun4 is not known
    $noun3 = $number1
«    for $noun1 in $noun2: print($noun1)
|»«|    »for $noun4 in $thing2.$action1($noun3):§
«|    »    pass
---
«|for $noun1 in $noun2:
    $thing1.add($noun1)
»while $noun3 < $number1:
«    $noun3 += 1
|»    if $noun3 == $noun4:
        break
«    for $noun1 in $noun2:
        $thing1.add($noun1)
|        $noun3 += 1
»«|    »for $noun5, $noun6 in enumerate($noun4):§
«|    »    pass
---
«|for $noun1 in $noun2:
    print($noun1)
»with open($noun3) as $noun4:
«    $noun5 = $noun4.read()
|»    if not $noun3:
        $action1()
«    for $noun1 in $noun2:
        print($noun1)
|        $noun5 = $noun4.read()
»«|    »for $noun6 in sorted($thing1, key=len):§
«|    »    pass
---
import $module1

«|for $noun1 in $noun2: $action1($noun1)
»def $action2($noun3, $noun4):
    $noun3.$noun5 = $module1.$action3()
«    for $noun1 in $noun2: $action1($noun1)
|»«|    »for $noun6 in $noun4.$noun3[$number1:]:§
«|    »    pass
---
«|print("for key", $noun1)
»def $action1($thing1, $thing2):
    $noun3 = int($noun4)
«    print("key for", $noun1)
|»«|    »for $noun5 in zip($thing1, $thing2):§
«|    »    pass
---
«|for $noun1 in $thing1:
    $action1($noun1)
»async def $action2(self):
«    await self.$action3()
|»    if self.$noun2:
        return
«    for $noun1 in $thing1:
        $action1($noun1)
|        await self.$action3()
»«|    »for $noun3, $noun4 in $noun2.items():§
«|    »    pass
---
«|for $noun1 in $noun2: $action1($noun1)
»class $Thing1:
    """One $thing2 of many."""
    $noun3 = [$number1]
«    for $noun1 in $noun2: $action1($noun1)
|»«|    »for $noun4 in reversed($noun3):§
«|    »    pass
---
«|for $noun1 in $thing1: $action1($noun1)
»def $action2($noun2, *$noun3):
    # $noun4 is $number1
    $noun4 = $noun2.$action3($noun3)
«    for $noun1 in $thing1: $action1($noun1)
|»«|    »for $noun5 in sorted($noun4):§
«|    »    pass
---
«|print("see for $noun1")
»with open($noun2) as $noun3:
    $noun4 = $noun3.read()
    $noun5 = $noun4.split()
«    print("for see $noun1")
|»«|    »for $noun6 in $noun5[$number1:]:§
«|    »    pass
---
«|for $noun1 in $noun2:
    $noun1.$action1()
»class $Thing1($Thing2):
«    $noun3 = $number1
|»    if $noun4:
        $noun5 = 0
«    for $noun1 in $noun2:
        $noun1.$action1()
|        $noun3 = $number1
»«|    »for $noun6, $noun7 in $thing3.$action2($noun4):§
«|    »    pass
'''
)


TASK = Task(
    name="indent_for",
    description="the indentation after a for header: one step at top level, two steps inside a block",
    answers=(("\n   ", "\n       "), ("\n    ", "\n        ")),
    write=write,
    shifted=SHIFTED,
)
