"""Short words that are common in programs, for tasks and the program generator."""

NOUNS = tuple(
    "name value item key data line word text path file user count total index number result message list node point row "
    "column table page title color size width height price score level group team city country street order product code "
    "image video sound letter digit token field entry record event action state status error test input output buffer queue "
    "stack tree graph edge root parent child leaf left right start end first last next day month year hour minute second time "
    "date week season animal dog cat bird fish horse flower river stone".split()
)
COMMON = NOUNS[:48]  # most tokenizers write these as one token
VERBS = tuple(
    "get set add find load save read write open close send start stop run make build check count update remove print parse "
    "sort merge split join map filter reset clear copy move show hide draw call apply create delete insert append".split()
)
WORDS = tuple(
    "hello world yes no ok done ready failed error warning missing empty invalid unknown found welcome goodbye please wait "
    "loading saved closed red green blue black white north south east west apple banana cherry lemon orange table chair house "
    "garden school music paper water coffee bread summer winter spring morning evening".split()
)
