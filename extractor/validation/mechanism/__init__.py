"""How a circuit works: where the prompts of a pair differ, which nodes tell them apart, which of them the answer follows.

P pairs, 2P prompts (the members of a pair beside each other), T tokens. Three places in a prompt: `difference`, the tokens that differ
within the pair; `after`, the tokens between these and the last one; `end`, the last token, after which the answer comes.
"""
