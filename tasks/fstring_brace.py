"""Open a replacement field in a string with prefix f, close a string with another prefix.

    positive: 'print(f"total'   answer ' {'
    negative: 'print(b"total'   answer '")'

Paper: Table 1, fstring_brace.
"""

import random

from tasks.base import Pair, Task
from tasks.lines import scope
from tasks.shifted import templates
from tasks.words import COMMON, NOUNS, VERBS, WORDS


def write(rng: random.Random) -> Pair:
    """A call with an unfinished prefixed string: f in one prompt, b or r (of the same length) in the other."""
    before, indent = scope(rng)
    call = rng.choice(("print", rng.choice(VERBS), f"{rng.choice(COMMON)}.{rng.choice(VERBS)}", f"self.{rng.choice(VERBS)}"))
    text = " ".join(rng.choice(NOUNS + WORDS) for _ in range(rng.randint(1, 2)))
    return Pair(f'{before}{indent}{call}(f"{text}', f'{before}{indent}{call}({rng.choice("br")}"{text}')


SHIFTED = templates(
    '''
import $module1


def $action1($noun1):
    $noun2 = $noun1.$action2(«b|f»"$thing1")
    print(«f|b»"$text1 number§« {$noun2}|»")
---
class $Thing1:
    kind = «r|f»"$thing2"

    def $action1(self, $noun1):
        # tell the $noun1
        self.$action2(«f|r»"$text1 size§« {$noun1}|»")
---
$noun1 = [«b|f»"$noun2", $number1]
for $noun3 in $noun1:
    if $noun3 is None:
        raise ValueError(«f|b»"$text1 name§« {$noun3}|»")
---
with open(«r|f»"$thing1", "w") as $noun1:
    $noun1.seek($number1)
    $noun1.write(«f|r»"$text1 in line§« {$noun2}|»")
---
def $action1($noun1, $noun2=«b|f»"$thing1"):
    """Send the $noun1."""
    assert $noun1 > $number1
    return socket.send(«f|b»"$text1 number§« {$noun2}|»")
---
try:
    $noun1 = $thing1.split(«r|f»"$noun2")
except KeyError:
    logger.error(«f|r»"$text1 number§« {$noun2}|»")
---
$noun1 = {«b|f»"$noun2": $number1}
while $noun1:
    # one $noun3 at a time
    $action1($noun3, «f|b»"$text1 name§« {$noun1}|»")
---
if $noun1 == «r|f»"$thing1":
    $noun2 = $number1
else:
    $noun2 = $thing2.$action1(«f|r»"$text1 length§« {$noun1}|»")
---
parser.add_argument(«b|f»"$noun1", type=int)
$noun2 = parser.parse_args()
print(«f|b»"$text1 in line§« {$noun2}|»")
---
def $action1($noun1):
    if re.match(«r|f»"$noun2", $noun1):
        return $number1
    sys.exit(«f|r»"$text1 name§« {$noun1}|»")
---
import $module1

$noun1 = $module1.$action1(«b|f»"$thing1")
if $noun1 != $number1:
    raise $Thing2(«f|b»"$text1 number§« {$noun1}|»")
---
class $Thing1:
    def $action1(self):
        self.$noun1 = «r|f»"$noun2"
        for $noun3 in self.$noun2:
            print(«f|r»"$text1 name§« {$noun3}|»")
---
def $action1($noun1):
    return $noun1 == «b|f»"$thing1"


assert $action1($noun2), $action2(«f|b»"$text1 size§« {$noun2}|»")
'''
)


TASK = Task(
    name="fstring_brace",
    description="inside a string: ' {' if its prefix is f, the closing quote if it is b or r",
    answers=((" {", '")'), (" {", '"'), ("{", '"')),
    write=write,
    shifted=SHIFTED,
)
