"""What no error tells of a constitution: comparison texts that give a judge nothing to compare, principles
that say the same in other words, and that nothing speaks against evasion and preaching. Lines of warning.

By words alone, of English texts alone, and careful: a line is nearly always right, and that there is none
says little. What a judge in fact does with the principles is measured by `cai constitution test`.

Caught: a comparison text that asks for no choice between responses ("Be honest.", a request to rewrite or
to criticise), or that names no quality ("Which response is better?"); two comparison texts with the same
words of content, or nearly, in whatever order and form, where words of one meaning ("harmful", "does
damage") count as one, and as their opposite behind "less" or "not"; without comparison texts, two
principles whose critique and revision requests both say the same; an opposite that says the same as its
principle. Not caught: paraphrases in words that the lists below do not know.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import combinations

from cai_cli.prompting.principles import Constitution, Principle

ALIKE = 0.8  # the share of two texts' content words that both have, from which on they say the same
SHORTEST_STEM = 4


def words_of(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.lower())


# Without any of these a text is not taken for English, and nothing is said of it.
ENGLISH = frozenset(
    words_of("the which that and it be should not with for response responses assistant choose")
)
# What asks for a choice between responses, and what may be read as asking for one
CHOICE = re.compile(
    r"\b(?:choos\w+|chose|pick|select|prefer\w*|compar\w+|rank|decide|vote|options?|which|who|whose|what|either|both|two"
    r"|responses|replies|answers|completions|messages|outputs|assistants)\b"
)
COMPARATIVE = re.compile(
    r"\b(?:more|less|most|least|fewest|best|worst|as .* as possible"
    r"|(?!user|answer|other|another|whether|rather|never|ever|over|after|under|however|manner|matter)\w+er)\b"
)
RELATIVE = re.compile(r"(?:\b(?:ways?|cases?|places?|parts?|points?) (?:in|of|at|by|to|from)|,) which\b")
# What a request for a text begins with: no question that an option answers
WRITES = re.compile(
    r"\W*(?:please |now |carefully )*(?:re-?write|write|revise|edit|rephrase|correct|change|identify|explain|describe"
    r"|discuss|critique|critici[sz]e|list|point out|check|examine|find|name|say|remove)\b"
)
# What comparisons are asked with, not what they are about
FRAME = frozenset(
    words_of("""
    a an the this that these those and or but if of in on at to by with from for as than then so such into
    over between instead still is are was were be been being am do does did done doing has have had having
    will would should could can may might must it its they them their there here one ones two both either
    each other another any all some more most much many very rather also only just even too while whether
    when where how what who whose which i me my we us our you your he she his her every please now kindly
    choose choosing chose pick select prefer prefers preferred preferable compare comparing decide rank
    consider considering think following given above below based according regarding terms degree closely
    attention paying assistant assistants ai model chatbot response responses reply replies answer answers
    option options output outputs completion completions message messages text texts statement conversation
    dialogue human user person question best better good well like likes liked likely sound sounds sounding
    seem seems appear appears say says said somebody someone anybody anyone everybody everyone something
    anything thing things exhibit exhibits show shows demonstrate demonstrates give gives make makes contain
    contains content criterion criteria principle constitution possible overall first second
""")
)
LESS = frozenset(
    words_of("""less least fewer fewest not no never none nothing nobody without neither avoid avoids avoiding isn doesn don
    cannot""")
)
APART = re.compile(r"[.?!;:()]|\b(?:but|than|rather|instead)\b")
LISTED = re.compile(r",|\b(?:and|or|nor)\b")
ENDINGS = (
    "ness ation ations ful ingly ing edly ied ies ied able ible ally ely ly est er ous ive ity ed es al y e s"
)
# Words of one meaning, of what principles are mostly about
MEANINGS = """harm damage hurt injure injury
honest truthful sincere candid frank
polite courteous courtesy civil
kind caring care cares compassionate compassion empathetic empathy sympathetic
toxic hateful spiteful
illegal unlawful criminal crime
dangerous danger hazardous risky unsafe
help helpful useful use assist assistance
offensive insulting insult rude
ethical moral
deceive deceptive deception mislead misleading
private privacy confidential
child children kid
violent violence
accurate correct factual
concise brief short
clear understandable
preachy preach moralise moralize lecture sermon
evasive evade evasion dodge dodging
respectful respect"""

EVASION = re.compile(
    r"\b(?:evas|evad|dodg|refus|helpful|unhelpful|forthcoming|engag|stonewall|non-?committal|withhold|deflect)"
)
PREACHING = re.compile(
    r"\b(?:preach|moralis|moraliz|sermon|lectur|condescend|condemn|over-?react|overly[- ]react|judge?mental|self-righteous"
    r"|sanctimon|patroni|accus|talks? down)"
)


def cautions(constitution: Constitution) -> list[str]:
    """A line for each weak point, none for a constitution without any."""
    found = [
        f"{principle.id}: its comparison text {weakness}"
        for principle in constitution.principles
        if (weakness := nothing_to_compare(principle.comparison))
    ]
    found += [
        f"{listed(ids)}: say the same, if in other words: leave all but one out, or tell them apart"
        for ids in same_in_other_words(constitution.principles)
    ]
    found += [
        f"{principle.id}: its opposite says the same in other words: let it prefer the other response"
        for principle in constitution.principles
        if principle.opposite and alike(principle.comparison, principle.opposite)
    ]
    if silent := silent_on(constitution.principles):
        found.append(
            f"no comparison text speaks against {' or '.join(silent)}: trained for long on such labels, a "
            "policy turns to harsh replies and boilerplate (paper section 4.3); `thorough` has principles against both"
        )
    return found


def listed(ids: list[str], most: int = 4) -> str:
    return (
        f"{', '.join(ids[: most - 1])} and {len(ids) - most + 1} more" if len(ids) > most else ", ".join(ids)
    )


def nothing_to_compare(text: str) -> str:
    """Why a comparison text gives a judge nothing to compare, "" where it gives something."""
    plain = RELATIVE.sub(" ", text.lower())
    if not is_english(text):
        return ""
    if not CHOICE.search(plain) and (WRITES.match(plain) or not COMPARATIVE.search(plain)):
        return "asks for no choice between responses: word it as a question, such as `Which response is ...?`"
    if not content(text):
        return "names no quality that responses could differ in: say what makes one better"
    return ""


def same_in_other_words(principles: tuple[Principle, ...]) -> list[list[str]]:
    """Ids of principles that say the same, in groups."""
    groups: list[list[str]] = []
    for one, other in combinations(principles, 2):
        if not same_principle(one, other):
            continue
        group = next((group for group in groups if one.id in group), None)
        if group is None:
            groups.append(group := [one.id])
        group += [] if other.id in group else [other.id]
    return groups


def same_principle(one: Principle, other: Principle) -> bool:
    if one.comparison or other.comparison:
        return alike(one.comparison, other.comparison)
    return alike(one.critique, other.critique) and alike(one.revision, other.revision)


def silent_on(principles: tuple[Principle, ...]) -> list[str]:
    """Which of the two faults no comparison text names; none of them where no text is in English."""
    texts = " ".join(principle.comparison for principle in principles).lower()
    if not is_english(texts):
        return []
    return [
        name for name, words in (("evasion", EVASION), ("preaching", PREACHING)) if not words.search(texts)
    ]


def alike(one: str, other: str) -> bool:
    """Whether two texts have the same words of content, or nearly."""
    first, second = content(one), content(other)
    return bool(first and second) and len(first & second) >= ALIKE * len(first | second)


def is_english(text: str) -> bool:
    return not ENGLISH.isdisjoint(words_of(text))


def content(text: str) -> frozenset[tuple[str, bool]]:
    """The meanings that a text names, each with whether there is to be less of it."""
    return frozenset(meaning for part in APART.split(text.lower()) for meaning in meanings(part))


def meanings(part: str) -> Iterator[tuple[str, bool]]:
    """Those of a clause, or of a list, in which a word alone is to be less where the one before it is."""
    turned = False
    for item in LISTED.split(part):
        words = words_of(item)
        named = [word for word in words if word not in FRAME and word not in LESS and len(word) > 1]
        if len(named) != 1 or COMPARATIVE.search(item) or not LESS.isdisjoint(words):
            turned = sum(word in LESS for word in words) % 2 == 1
        for word in named:
            without = word.endswith("less") and len(word) >= SHORTEST_STEM + len("less")
            root = stem(word.removesuffix("less") if without else word)
            yield SAME.get(root, root), turned != without


def stem(word: str) -> str:
    """A word without its endings."""
    for ending in ENDINGS.split():
        if word.endswith(ending) and len(word) - len(ending) >= SHORTEST_STEM:
            return stem(word.removesuffix(ending))
    return word


SAME = {stem(word): line.split()[0] for line in MEANINGS.splitlines() for word in line.split()}
