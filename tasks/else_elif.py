"""Continue with a colon after else, with a condition after elif.

    positive: 'if count:\n    total = 3\nelse'   answer ':'
    negative: 'if count:\n    total = 3\nelif'   answer ' not'

Paper: Table 1, else_elif.
"""

import random

from tasks.base import Pair, Task
from tasks.lines import assignment, condition, scope
from tasks.shifted import templates


def write(rng: random.Random) -> Pair:
    """An if with a body of one or two lines, up to the first word of its next branch."""
    before, indent = scope(rng)
    body = "".join(f"{indent}    {assignment(rng)}\n" for _ in range(rng.randint(1, 2)))
    start = f"{before}{indent}if {condition(rng)}:\n{body}{indent}"
    return Pair(f"{start}else", f"{start}elif")


SHIFTED = templates(
    '''
def $action1($noun1, $noun2):
    if $noun1 is None:
        $noun2 = 0
    «elif $noun2|else»:
        $noun1 = $number1 # the«| $noun2» limit
    if $noun1 > $number2:
        return $thing1
    «else|elif»§«:| not $noun2:»
        return None
---
for $noun1 in $thing1:
    if $noun1 == $number1:
        continue
    «elif $noun2|else»:
        print("other«| $noun2»", $noun1)
    if $noun1.$noun3:
        $action1($noun1)
    «else|elif»§«:| not $noun3:»
        break
---
class $Thing1:
    def $action1(self, $noun1):
        # the $noun2«| $noun1» may be empty
        if self.$noun2:
            $noun3 = 1
        «elif $noun1|else»:
            $noun3 = $number1
        if $noun3 < $number2:
            raise ValueError($noun3)
        «else|elif»§«:| not $noun1:»
            return $noun3
---
def $action1($noun1, $noun2):
    while $noun1:
        if $thing1.$noun1 == $noun2:
            break
        «elif $noun3|else»:
            return«| $noun3»
        if $action2($noun1):
            return True
        «else|elif»§«:| not $noun2:»
            pass
---
def $action1($noun1):
    """Tell whether there is the $thing1."""
    if $noun1 in $noun2:
        $noun3 = $number1
    «elif $noun3|else»:
        raise ValueError("the $thing1«| $noun3»")
    if len($noun2) != $number2:
        $action2($noun1)
    «else|elif»§«:| not $noun3:»
        return False
---
with open($noun1) as $noun2:
    if $noun3:
        $thing1 = $noun2.read()
    «elif $noun4|else»:
        $thing1 = $number1 # no«| $noun4»
    if $thing1 is $noun3:
        $action1()
    «else|elif»§«:| not $noun3:»
        pass
---
try:
    if $thing1.$noun1:
        $noun2 = [$number1]
    «elif $noun3|else»:
        $noun2 = [$number1] # one«| $noun3»
    if $action1($noun2):
        $noun1 = $noun2.pop()
    «else|elif»§«:| not $noun1:»
        $noun1 = 0
finally:
    pass
---
def $action1($noun1, **options):
    if "$noun2" in options:
        $noun3 = options["$noun2"]
    «elif $noun1|else»:
        return«| $noun1»
    if $noun3 and $noun1:
        yield $noun3
    «else|elif»§«:| not $noun3:»
        yield $number1
---
if __name__ == "__main__":
    if $noun1.$noun2 > $number1:
        $noun3 = $noun1
    «elif $noun2|else»:
        $noun3 = "to $thing1«| $noun2»"
    if $noun3 is None:
        print("no $thing1")
    «else|elif»§«:| not $noun2:»
        print($noun3)
---
async def $action1(self, $noun1):
    if not $noun1:
        self.$noun2 = 0
    «elif $noun3|else»:
        yield«| $noun3»
    if self.$noun2 >= $number1:
        await self.$action2()
    «else|elif»§«:| not $noun1:»
        return
---
import $module1

if $module1.$noun1:
    $noun2 = $number1
«elif $noun3|else»:
    $noun2 = $action1(«|$noun3»)
if $noun2 < 0:
    raise ValueError($noun2)
«else|elif»§«:| not $noun3:»
    pass
---
def $action1(self, $noun1):
    for $noun2 in $noun1:
        if $noun2 is None:
            continue
        «elif $noun3|else»:
            self.$noun2 = $noun1 # or«| $noun3»
        if $noun2.$noun4:
            return $number1
        «else|elif»§«:| not $noun3:»
            pass
---
while $noun1:
    if $noun1.$noun2 > $number1:
        $noun1 = $action1($noun1)
    «elif $noun3|else»:
        break #«| $noun3»
    if $noun2 == 0:
        # nothing to $action2
        continue
    «else|elif»§«:| not $noun2:»
        pass
'''
)


TASK = Task(
    name="else_elif",
    description="after a branch's first word: ':' after else, ' not' (a condition) after elif; one token decides",
    answers=((":", " not"), (":\n", " not")),
    write=write,
    shifted=SHIFTED,
    one_token=True,
)
