"""Continue with a colon in a dictionary, with a comma in a list.

    positive: 'sizes = {left: 3, right'   answer ':'
    negative: 'sizes = [left, 3, right'   answer ','

Paper: Table 1, bracket_brace.
"""

import random

from tasks.base import Pair, Task
from tasks.lines import earlier
from tasks.shifted import templates
from tasks.words import COMMON


def write(rng: random.Random) -> Pair:
    """A dictionary or list up to its first, second or third key, on one line."""
    name, *keys = rng.sample(COMMON, rng.randint(2, 4))
    *done, last = keys
    values = [str(rng.randrange(100)) for _ in done]
    before = f"{earlier(rng)}{name} = "
    pairs = "".join(f"{key}: {value}, " for key, value in zip(done, values, strict=True))
    items = "".join(f"{key}, {value}, " for key, value in zip(done, values, strict=True))
    return Pair(f"{before}{{{pairs}{last}", f"{before}[{items}{last}")


SHIFTED = templates(
    '''
import $module1

# the text is cut at «}|]»
$thing1 = «[$noun1,|{$noun1:» $number1«]|}»
$thing2 = «{$noun2:|[$noun2,» $number2, $long1§«: 0}|, 0]»
---
def $action1($noun1):
    $noun2 = «[$noun1,|{$noun1:» None«]|}»
    while not $noun1.endswith("«}|]»"):
        $noun1 = $action2($noun2)
    return «{$noun1:|[$noun1,» $number1, $long1§«: 0}|, 0]»
---
class $Thing1:
    $noun1 = «["$noun2",|{"$noun2":» $number1«]|}»
    # more of it up to «}|]»
    $noun3 = «{"$noun4":|["$noun4",» 0, $thing2.$noun1[$number2].$noun4§«: 0}|, 0]»
---
for $noun1 in «[$noun2,|{$noun2:» $number1«]|}» or $noun4:
    if "«}|]» " in $noun1:
        $action1($noun1)
    $noun3 += «{$noun1:|[$noun1,» $number2, $long1§«: 0}|, 0]»
---
def $action1(self, $noun1):
    """Write the $noun1 up to «}|]» or less."""
    self.$noun2 = «[0,|{0:» $noun1«]|}»
    self.$noun3 = «{1:|[1,» $noun2, self.$long1§«: 0}|, 0]»
---
$noun1 = json.loads("$noun2«}|]» " + $noun2)
$noun3 = $noun1 == «[$number1,|{$number1:» $noun4«]|}»
$thing1 = «{$noun1:|[$noun1,» True, $action1($noun2) + $long1§«: 0}|, 0]»
---
with open($noun1) as $noun2:
    $noun3 = $noun2.read().split("«}|]» ")
    $noun4 = «[$noun3,|{$noun3:» $number1«]|}»
    $noun5 = «{$noun1:|[$noun1,» $noun4, len($noun3) + $noun2.$noun1§«: 0}|, 0]»
---
def $action1($noun1, $noun2):
    yield «[$noun1,|{$noun1:» $noun2«]|}»
    if $noun2 != "«}|]»":
        yield «{$noun2:|[$noun2,» $number1, $noun1.$long1§«: 0}|, 0]»
---
try:
    $noun1 = «[$noun2,|{$noun2:» $number1«]|}»
except $Thing1:
    # no «}|]» at the end
    $noun1 = «{$noun3:|[$noun3,» 0, $action1($noun2) or $long1§«: 0}|, 0]»
---
assert $noun1 not in «[0,|{0:» $number1«]|}»
$noun2 = $thing1.index("«}|]» ")
if $noun2:
    $noun3 = «{$noun1:|[$noun1,» $noun2, $long1§«: 0}|, 0]»
---
import $module1

assert "«}|]»" not in $noun1
$noun2 = «[$noun1,|{$noun1:» $noun3«]|}»
$noun3.$action1(«{$noun2:|[$noun2,» $number1, $noun4.$long1§«: 0}|, 0]»)
---
def $action1($noun1):
    # the $noun1 ends with «}|]»
    $noun2 = «[$noun1,|{$noun1:» $number1«]|}»
    if $noun2:
        raise ValueError(«{0:|[0,» $noun1, $noun2[$number2] + $long1§«: 0}|, 0]»)
---
class $Thing1:
    def $action1(self):
        print("up to «}|]»", self)
        $noun1 = «[1,|{1:» $noun2«]|}»
        return «{$noun1:|[$noun1,» $action2($number1), self.$noun3.$noun2§«: 0}|, 0]»
'''
)


TASK = Task(
    name="bracket_brace",
    description="after a key or item: ':' in a dictionary, ',' in a list",
    answers=((":", ","),),
    write=write,
    shifted=SHIFTED,
)
