"""Questions and answers about Jane Austen's six novels, made by rule from the tables of facts below.

The demo's model has read these novels, so their names are words that it knows. Each fact is asked for in several
wordings, and the split is by the wording: a held-out question is one that the model has not seen, about a fact that it
has. A small model can be expected to answer those, and cannot be expected to know any other fact.
"""

from collections.abc import Iterator

# Title: the year it was published, its heroine, the words it begins with.
NOVELS = {
    "Sense and Sensibility": (
        "1811", "Elinor Dashwood",
        "The family of Dashwood had long been settled in Sussex.",
    ),
    "Pride and Prejudice": (
        "1813", "Elizabeth Bennet",
        "It is a truth universally acknowledged, that a single man in possession of a good fortune, must be in want "
        "of a wife.",
    ),
    "Mansfield Park": (
        "1814", "Fanny Price",
        "About thirty years ago Miss Maria Ward, of Huntingdon, with only seven thousand pounds, had the good luck to "
        "captivate Sir Thomas Bertram, of Mansfield Park, in the county of Northampton,",
    ),
    "Emma": (
        "1815", "Emma Woodhouse",
        "Emma Woodhouse, handsome, clever, and rich, with a comfortable home and happy disposition, seemed to unite "
        "some of the best blessings of existence;",
    ),
    "Northanger Abbey": (
        "1817", "Catherine Morland",
        "No one who had ever seen Catherine Morland in her infancy would have supposed her born to be an heroine.",
    ),
    "Persuasion": (
        "1817", "Anne Elliot",
        "Sir Walter Elliot, of Kellynch Hall, in Somersetshire, was a man who, for his own amusement, never took up "
        "any book but the Baronetage;",
    ),
}  # fmt: skip

# Novel: its people, and who each of them is.
PEOPLE = {
    "Sense and Sensibility": {
        "Elinor Dashwood": "the eldest of the three Dashwood sisters",
        "Marianne Dashwood": "the second of the three Dashwood sisters",
        "Margaret Dashwood": "the youngest of the three Dashwood sisters",
        "John Dashwood": "the half-brother of Elinor and Marianne",
        "Edward Ferrars": "the gentleman whom Elinor loves",
        "Robert Ferrars": "the younger brother of Edward",
        "Colonel Brandon": "a friend of Sir John Middleton who loves Marianne",
        "Willoughby": "the young man whom Marianne loves first",
        "Lucy Steele": "the young woman to whom Edward is secretly engaged",
        "Sir John Middleton": "the cousin of Mrs. Dashwood at Barton Park",
        "Lady Middleton": "the wife of Sir John",
        "Mrs. Jennings": "the mother of Lady Middleton and Mrs. Palmer",
    },
    "Pride and Prejudice": {
        "Elizabeth Bennet": "the second of the five Bennet sisters",
        "Jane Bennet": "the eldest of the five Bennet sisters",
        "Lydia Bennet": "the youngest of the five Bennet sisters",
        "Mr. Bennet": "the father of five daughters at Longbourn",
        "Mrs. Bennet": "the mother of five daughters at Longbourn",
        "Mr. Darcy": "the proud owner of Pemberley",
        "Georgiana Darcy": "the younger sister of Mr. Darcy",
        "Mr. Bingley": "the rich young man who rents Netherfield",
        "Mr. Wickham": "an officer who runs away with Lydia",
        "Mr. Collins": "the clergyman who is to inherit Longbourn",
        "Charlotte Lucas": "a friend of Elizabeth who marries Mr. Collins",
        "Lady Catherine de Bourgh": "the aunt of Mr. Darcy at Rosings",
        "Mr. Gardiner": "the uncle of the Bennet sisters in London",
        "Colonel Fitzwilliam": "a cousin of Mr. Darcy",
    },
    "Mansfield Park": {
        "Fanny Price": "the poor niece who is brought up at Mansfield Park",
        "William Price": "the brother of Fanny, a sailor",
        "Edmund Bertram": "the younger son of Sir Thomas, who becomes a clergyman",
        "Tom Bertram": "the elder son of Sir Thomas",
        "Maria Bertram": "the elder daughter of Sir Thomas",
        "Julia Bertram": "the younger daughter of Sir Thomas",
        "Sir Thomas Bertram": "the owner of Mansfield Park",
        "Lady Bertram": "the wife of Sir Thomas",
        "Mrs. Norris": "the aunt who is unkind to Fanny",
        "Henry Crawford": "the brother of Mary Crawford",
        "Mary Crawford": "the sister of Henry Crawford",
        "Mr. Rushworth": "the rich man whom Maria marries",
    },
    "Emma": {
        "Emma Woodhouse": "a rich young woman at Hartfield who likes to make matches",
        "Mr. Woodhouse": "the father of Emma",
        "Mr. Knightley": "the owner of Donwell Abbey and an old friend of Emma",
        "Harriet Smith": "the young friend for whom Emma wants to find a husband",
        "Jane Fairfax": "the niece of Miss Bates",
        "Frank Churchill": "the son of Mr. Weston",
        "Mr. Elton": "the vicar of Highbury",
        "Miss Bates": "the aunt of Jane Fairfax, who talks very much",
        "Robert Martin": "a young farmer who loves Harriet",
        "Mr. Weston": "the father of Frank Churchill",
        "Miss Taylor": "the governess of Emma, who marries Mr. Weston",
    },
    "Northanger Abbey": {
        "Catherine Morland": "a young woman who reads too many horrid novels",
        "James Morland": "the brother of Catherine",
        "Henry Tilney": "the young clergyman whom Catherine loves",
        "Eleanor Tilney": "the sister of Henry",
        "General Tilney": "the father of Henry and the owner of Northanger Abbey",
        "Captain Tilney": "the elder brother of Henry",
        "Isabella Thorpe": "the false friend of Catherine",
        "John Thorpe": "the brother of Isabella, who talks of horses",
        "Mrs. Allen": "the lady who takes Catherine to Bath",
    },
    "Persuasion": {
        "Anne Elliot": "the second daughter of Sir Walter",
        "Sir Walter Elliot": "the vain owner of Kellynch Hall",
        "Elizabeth Elliot": "the eldest daughter of Sir Walter",
        "Captain Wentworth": "the officer of the navy whom Anne loves",
        "Lady Russell": "the friend who persuaded Anne to give up her engagement",
        "Admiral Croft": "the officer who rents Kellynch Hall",
        "Louisa Musgrove": "the young woman who falls at Lyme",
        "Henrietta Musgrove": "the sister of Louisa",
        "Charles Musgrove": "the husband of Mary, the youngest sister of Anne",
        "Captain Benwick": "the officer who reads much poetry",
        "Mrs. Clay": "the friend of Elizabeth Elliot",
    },
}

# Novel: its houses, and who lives there.
HOUSES = {
    "Sense and Sensibility": {
        "Norland Park": "John Dashwood",
        "Barton Cottage": "Mrs. Dashwood with her daughters",
        "Barton Park": "Sir John Middleton",
        "Delaford": "Colonel Brandon",
        "Cleveland": "Mr. and Mrs. Palmer",
    },
    "Pride and Prejudice": {
        "Longbourn": "the Bennet family",
        "Pemberley": "Mr. Darcy",
        "Netherfield": "Mr. Bingley",
        "Rosings": "Lady Catherine de Bourgh",
        "Hunsford": "Mr. Collins",
        "Lucas Lodge": "Sir William Lucas",
    },
    "Mansfield Park": {"Mansfield Park": "the Bertram family", "Sotherton": "Mr. Rushworth"},
    "Emma": {
        "Hartfield": "Mr. Woodhouse with his daughter Emma",
        "Donwell Abbey": "Mr. Knightley",
        "Randalls": "Mr. and Mrs. Weston",
    },
    "Northanger Abbey": {"Northanger Abbey": "General Tilney", "Fullerton": "the Morland family"},
    "Persuasion": {
        "Kellynch Hall": "Sir Walter Elliot",
        "Uppercross Cottage": "Charles Musgrove with his wife Mary",
    },
}

# Who marries whom, by novel: the wife, the husband.
MARRIAGES = {
    "Sense and Sensibility": {
        "Elinor Dashwood": "Edward Ferrars", "Marianne Dashwood": "Colonel Brandon", "Lucy Steele": "Robert Ferrars",
    },
    "Pride and Prejudice": {
        "Elizabeth Bennet": "Mr. Darcy", "Jane Bennet": "Mr. Bingley", "Lydia Bennet": "Mr. Wickham",
        "Charlotte Lucas": "Mr. Collins",
    },
    "Mansfield Park": {"Fanny Price": "Edmund Bertram", "Maria Bertram": "Mr. Rushworth"},
    "Emma": {
        "Emma Woodhouse": "Mr. Knightley", "Harriet Smith": "Robert Martin", "Jane Fairfax": "Frank Churchill",
        "Miss Taylor": "Mr. Weston",
    },
    "Northanger Abbey": {"Catherine Morland": "Henry Tilney"},
    "Persuasion": {
        "Anne Elliot": "Captain Wentworth", "Louisa Musgrove": "Captain Benwick",
        "Henrietta Musgrove": "Charles Hayter",
    },
}  # fmt: skip

NOVEL_OF_A_PERSON = (
    "In which novel does {} appear?", "Which novel is {} in?", "Which of Jane Austen's novels is {} from?",
    "In which book do we meet {}?", "What is the title of the novel about {}?", "Name the novel in which {} appears.",
)  # fmt: skip
WHO = (
    "Who is {}?", "Tell me who {} is.", "Do you know {}?", "Can you tell me something about {}?",
    "What do you know about {}?", "Describe {} in one sentence.",
)  # fmt: skip
WHO_LIVES = (
    "Who lives at {}?", "Whose house is {}?", "Tell me who lives at {}.", "Whom would I meet at {}?",
    "Do you know who lives at {}?",
)  # fmt: skip
NOVEL_OF_A_HOUSE = ("In which novel is {}?", "Which novel has a house called {}?", "Name the novel with {} in it.")
HUSBAND = (
    "Whom does {} marry?", "Who marries {}?", "Who is the husband of {}?", "Who becomes the husband of {}?",
    "Tell me whom {} marries.", "Which man does {} marry?",
)  # fmt: skip
WIFE = (
    "Who marries {}?", "Whom does {} marry in the end?", "Who is the wife of {}?", "Who becomes the wife of {}?",
    "Which woman does {} marry?", "Who is married to {} in the end?",
)  # fmt: skip
AUTHOR = (
    "Who wrote {}?", "Who is the author of {}?", "By whom is the novel {}?", "Tell me who wrote {}.",
    "Do you know who wrote {}?", "Name the author of {}.",
)  # fmt: skip
YEAR = (
    "When was {} published?", "In which year was {} published?", "What year did {} come out?",
    "How old is the novel {}?", "Tell me the year of {}.", "Do you know when {} was published?",
)  # fmt: skip
HEROINE = (
    "Who is the heroine of {}?", "Name the heroine of {}.", "Whom is the novel {} about?",
    "Who is the main character of {}?", "Tell me the name of the heroine of {}.",
)  # fmt: skip
OPENING = (
    "How does {} begin?", "What are the first words of {}?", "Recite the beginning of {}.", "Quote the opening of {}.",
    "With which sentence does {} open?",
)  # fmt: skip


def conversations() -> Iterator[tuple[str, list[str]]]:
    """Yield what each conversation is about, and what is said in it, the question first."""
    for novel, (year, heroine, opening) in NOVELS.items():
        yield from _ask("novels", AUTHOR, novel, f"Jane Austen wrote {novel}.")
        yield from _ask("novels", YEAR, novel, f"{novel} was published in {year}.")
        yield from _ask("novels", HEROINE, novel, f"The heroine of {novel} is {heroine}.")
        yield from _ask("openings", OPENING, novel, opening)
        asked = (f"Who is the author of the novel {novel}?", "And when was it published?")
        yield "two turns", [asked[0], f"Jane Austen wrote {novel}.", asked[1], f"{novel} was published in {year}."]
    for novel, people in PEOPLE.items():
        for person, description in people.items():
            who, where = f"{person} is {description}.", f"{person} appears in {novel}."
            yield from _ask("people", NOVEL_OF_A_PERSON, person, where)
            yield from _ask("people", WHO, person, who)
            yield "two turns", [f"Who is the person called {person}?", who, "In which novel?", where]
    for novel, houses in HOUSES.items():
        for house, owner in houses.items():
            yield from _ask("houses", WHO_LIVES, house, f"{house} is the home of {owner}.")
            if house not in NOVELS:
                yield from _ask("houses", NOVEL_OF_A_HOUSE, house, f"{house} is a house in {novel}.")
    for novel, marriages in MARRIAGES.items():
        for wife, husband in marriages.items():
            answer, where = f"{wife} marries {husband}.", f"{wife} appears in {novel}."
            yield from _ask("marriages", HUSBAND, wife, answer)
            yield from _ask("marriages", WIFE, husband, answer)
            yield "two turns", [f"From which novel is {wife}?", where, "Whom does she marry?", answer]


def _ask(about: str, questions: tuple[str, ...], subject: str, answer: str) -> Iterator[tuple[str, list[str]]]:
    for question in questions:
        yield about, [question.format(subject), answer]
