"""What kind of task an instruction is, by rules: the first whose words it has.

Rules are wrong now and then, but anybody can read why: a mean over a category is for finding where a model is weak,
and looking at the examples. What no rule knows is "other".
"""

import re

MOST_READ = 2000  # characters of an instruction; what it is comes early

# In this order: the narrow before the wide. Verbs count where a sentence begins, or after "please", "to" and the like.
_START = r"(?:^|[.!?:]\s+|\n\s*|\b(?:please|you|to|and|then)\s+)"
_RULES: dict[str, str] = {
    "coding": (
        r"\b(?:python|java|javascript|typescript|c\+\+|sql|html|css|regex|regular expression|json|bash|api|algorithm"
        r"|pseudo-?code|code|source code|compiler|program that|script that|data structure|linked list|binary tree"
        r"|function (?:that|to|which|in)|for loop|query (?:that|to|for))\b|```"
    ),
    "mathematics": (
        r"\b(?:calculate|compute|solve (?:for|the equation)|equation|what is the sum|square root|derivative|integral"
        r"|probability of|perimeter|area of|volume of|percentage of|prime numbers?|factorial|arithmetic|algebra\w*"
        r"|geometry|round(?:ed)? to|convert \d|how many (?:\w+ ){0,4}(?:are left|in total|altogether))\b"
        r"|\d\s+[-+*/]\s+\d|\d\s*[*^=]\s*\d|\d\s*x\s*\d"
    ),
    "translation": r"\btranslat\w+\b|\b(?:in|into|to) (?:french|spanish|german|italian|latin|chinese|japanese)\b",
    "summarising": r"\b(?:summari[sz]\w+|summary|tl;?dr|condense|main (?:points?|ideas?)|key (?:points?|takeaways?))\b",
    "rewriting": (
        r"\b(?:rewrite|rephrase|paraphrase|reword|proofread|edit|correct the|fix the|revise|simplify|shorten|transform"
        r"|change the|convert the|replace the|punctuat\w+|rearrange|reorder|grammar"
        r"|restructure|add (?:a|an|the) \w+ to)\b"
    ),
    "classification": (
        r"\b(?:classif\w+|categori[sz]e|sentiment|label the|true or false|positive or negative|which category"
        r"|identify (?:the|whether|if|all)|detect|determine (?:if|whether)|sort the|odd one out|part of speech)\b"
    ),
    "reasoning": (
        r"\b(?:why|explain|compare|contrast|analy[sz]e|evaluate|difference between|pros and cons|infer|deduce|reason\w*"
        r"|riddle|puzzle|argue|justify|predict|cause of|advantages|disadvantages|what would happen|if .{3,60} then)\b"
    ),
    "writing": (
        rf"{_START}(?:write|compose|draft|craft|narrate|tell me a|create an? (?:\w+ ){{0,3}}(?:story|poem|dialogue"
        r"|slogan|haiku|tagline|song|letter|email|essay|speech|headline|title|tweet|ad|joke|metaphor|sentence|paragraph))\b"
        r"|\b(?:story|poem|haiku|essay|lyrics|slogan|dialogue|metaphor|simile|limerick)\b"
    ),
    "lists": (
        rf"{_START}(?:list|name|give|suggest|generate|brainstorm|recommend|provide|come up with|find|create|design"
        r"|outline)\b|\b(?:ideas? for|examples? of|tips|ways to|steps)\b"
    ),
    "conversation": (
        r"^\W*(?:hi|hello|hey|good (?:morning|evening|afternoon)|thanks?|how are you|nice to meet|what's up"
        r"|greetings)\b"
        r"|^(?:are|do|can|will|were|have|did) you (?!think)|\byour (?:favou?rite|name|age|mood|father|mother)\b"
        r"|^(?:i|you|my)\b"
    ),
    "factual": (
        r"\b(?:who|whom|whose|what|when|where|which|how (?:many|much|far|old|long|tall)|define|describe|tell me)\b"
    ),
}
_COMPILED = {name: re.compile(pattern, re.IGNORECASE) for name, pattern in _RULES.items()}
OTHER = "other"
CATEGORIES = (*_RULES, OTHER)


def category_of(instruction: str) -> str:
    """Return the category of an instruction, one of CATEGORIES.

    >>> category_of("Write a poem about the sea."), category_of("Who wrote Emma?")
    ('writing', 'factual')
    """
    text = instruction[:MOST_READ]
    return next((name for name, pattern in _COMPILED.items() if pattern.search(text)), OTHER)
