"""A small newsroom for the notebooks: articles made from templates, the same ones for the same seed.

Each article has one sentence with the news, details of it, and sentences that could stand in any article, in any
order. What is held out is new to a model that was trained on the rest: all its sentences are from templates of
their own, and its people, places and organisations have names of their own.
"""

from __future__ import annotations

import random
import re
from typing import TypedDict

TOPICS = ("business", "culture", "politics", "science", "sport")


class Article(TypedDict):
    """One article. `sentences` are tokens, `tags` says of each what it belongs to (B-PER, I-PER, …, O)."""

    topic: str
    sentences: list[list[str]]
    tags: list[list[str]]
    news: int


FIRST = (
    "Ada Aisha Amara Anton Bela Carla Chen Clara Daniel Elena Emeka Farid Fatou Grace Hana Hugo Ines Ivan Jonas Julia Kenji Lara "
    "Leo Lin Lucia Marta Miguel Mira Nadia Nils Olga Omar Paolo Petra Ravi Rosa Samir Sofia Tariq Vera Yuki Zoe"
).split()
LAST = (
    "Adeyemi Alvarez Bakker Becker Castellanos Chaudhry Costa Dahl Diallo Dubois Eriksen Farah Ferrari Fischer Florence Garcia Grant "
    "Haddad Hansen Hughes Ito Jansen Jordan Keller Kowalski Kumar Lincoln Lindqvist Lopez Marsh Mensah Moreau Nakamura Novak Okafor "
    "Petrov Quist Rahman Rossi Santos Schmidt Sharma Sydney Tanaka Torres Vance Weber Winslow Yilmaz Zhou"
).split()
PLACES = (
    "Accra Arden Bergen Bogota Brighton Cairo Dakar Delft Dover Dresden Florence Geneva Ghent Hanoi Jakarta Jordan Kyoto Lagos Leeds "
    "Lima Lincoln Lisbon Lyon Malmo Marseille Mumbai Nairobi Norwich Oslo Porto Prague Quito Riga Rotterdam Seoul Seville Sydney "
    "Tallinn Tunis Turin Utrecht Vienna Warsaw Zagreb"
).split()
ORGANISATIONS = {
    "business": ("{last} Motors", "{last} Bank", "{place} Steel", "{last} and Sons", "{place} Airlines", "Bank of {place}"),
    "culture": ("{place} Opera", "{last} Gallery", "Museum of {place}", "{place} Film Festival", "{last} Theatre"),
    "politics": ("{place} City Council", "Ministry of Health", "Ministry of Transport", "Green Alliance", "Senate", "Court of {place}"),
    "science": ("University of {place}", "{last} Institute", "{place} Observatory", "{last} Laboratory", "{place} Medical School"),
    "sport": ("FC {place}", "{place} United", "{place} Rovers", "{place} Athletic", "AC {place}", "Sporting {place}"),
}  # fmt: skip

NEWS = {
    "business": """
        {org} (will close|is closing|closes) its (plant|factory|works) in {loc} (next year|by the end of the year)
        {org} (bought|has bought|takes over) its (rival|competitor) {org2} for (two|four|nine) billion
        shares of {org} (fell|rose|dropped|jumped) (sharply|by a tenth|by eight percent) after (its|the) (profit|sales) report
        {per} (becomes|was named|is the new) (chief executive|head|chairwoman) of {org}
        {org} (cut|raised|lowered) its (profit|sales) (forecast|outlook) for the (second|third) time (this year|since spring)
        investors (sold|bought) shares of {org} after {per} (left|resigned from) the company
        {org} (plans|wants|is going) to hire (three hundred|two thousand) people for its (new factory|offices) in {loc}
        the (bank|lender) {org} (raises|lowers) its interest rates (from Monday|next month) , {per} said""",
    "culture": """
        the (exhibition|show) of {per} at the {org} (opened|opens|was opened) in {loc} (on Friday|last night)
        {per} (won|has won|receives) the (prize|award) for the best (novel|film|actress|painting) in {loc}
        the {org} (opens|begins) its season with a (new|forgotten) (play|opera) by {per}
        a (lost|stolen|forgotten) painting by {per} (was found|turned up|has been found) in a (cellar|museum) in {loc}
        the (novel|book|film) of {per} (is|was) the (surprise|success) of the {org} (this year|this spring)
        {per} (will conduct|conducts|leads) the orchestra of the {org} (from autumn|next season)
        (the singer|the director|the actor) {per} (returns|returned) to the stage of the {org} after (ten|six) years
        the {org} (shows|sells|bought) (drawings|paintings|early films) of {per} for the first time""",
    "politics": """
        the {org} (voted|decided|has voted) (for|against) the (new tax|housing law|budget) on (Tuesday|Thursday)
        {per} (won|has won|lost) the election in {loc} by (a few|four hundred) votes
        the minister {per} (resigned|steps down|will resign) after (a vote|the debate) in the {org}
        (thousands|hundreds) of people (marched|protested) in {loc} against the (law|tax|reform) of the {org}
        the {org} (stopped|rejects|has rejected) the (reform|law|budget) of the government of {per}
        {per} (will lead|leads) the (party|coalition) into the election (in May|next spring)
        voters in {loc} (chose|elected) {per} as (mayor|governor|their president)
        the government (signed|has signed) the (treaty|agreement) with {loc} , {per} (said|announced) in the {org}""",
    "science": """
        researchers of the {org} (found|have found|discovered) a (new|rare) (species|planet|protein) near {loc}
        {per} of the {org} (measured|has measured) the (light|mass|speed) of a distant (star|galaxy|planet)
        a (vaccine|drug|therapy) of the {org} (protects|protected) (mice|patients) in a (first|large) (study|trial)
        {per} and a team in {loc} (built|have built) the (smallest|fastest) (laser|telescope|computer) (so far|in the world)
        a (study|survey) of the {org} (shows|finds) that (sleep|exercise|coffee) (protects|helps) the (heart|brain)
        the (telescope|satellite|probe) of the {org} (sent|has sent) its first (pictures|data) of a (comet|moon|galaxy)
        (chemists|physicists|biologists) in {loc} (explain|have explained) how (cells|bees|glaciers) (remember|move|age)
        {per} (receives|won) the medal of the {org} for the (theory|discovery) of a new (particle|gene|enzyme)""",
    "sport": """
        {org} (beat|defeated|lost to) {org2} (two to one|three to nil|after penalties) in the (cup|league) on (Saturday|Sunday)
        {per} (scored|struck|headed) the (winning|late|only) goal for {org} in the (last minute|second half)
        {per} (won|has won) the (marathon|race|final) of {loc} in (record time|the rain)
        the (striker|keeper|captain) {per} (leaves|joins|moves to) {org} after the season
        {org} (won|wins|took) the (cup|title|league) for the (first|third) time since (the war|ten years)
        the (coach|trainer) {per} (was dismissed by|leaves) {org} after the (fifth|sixth) defeat (in a row|of the season)
        {per} (missed|saved|scored) a penalty in the final (in|of) {loc}
        {per} of {org} (broke|has broken) the (national|world) record (in|over) the (sprint|relay|high jump)""",
}
DETAILS = {
    "business": """
        the company earned (less|more) than analysts had expected
        the shares (lost|gained) a few percent in {loc}
        the factory has (four hundred|a thousand) workers
        sales (abroad|in Asia) make up half of the profit , according to {per}
        the bank did not want to say what it paid
        customers of {org} would not notice anything , {per} promised""",
    "culture": """
        the critics liked the (music|costumes|pictures) best
        tickets for the next (concerts|evenings) are sold out
        {per} had worked on the book for seven years
        the painting will be shown in {loc} as well
        it is the first film that {per} made without a script
        the audience of the {org} applauded for minutes""",
    "politics": """
        the opposition calls the law a mistake
        the party of {per} had hoped for more votes
        the debate went on until midnight
        the mayor of {loc} asks for more money from the government
        a spokesman of the {org} did not comment on the budget
        {per} wants to go on with the reform""",
    "science": """
        the data will be open to other researchers
        the experiment was repeated in {loc} with the same result
        what happens in the cells is not understood yet
        the study took (four|six) years and has its critics
        {per} warns that mice are not patients
        the {org} paid for the telescope""",
    "sport": """
        the goal came after a corner
        the team is now (third|fourth) in the league
        the next match is away in {loc}
        the captain left the pitch with an injured knee
        {per} had trained for the race in {loc}
        the fans of {org} sang until the end""",
}
ANYWHERE = """
    {per} (could not be reached|did not want to comment) on (Monday|Sunday)
    (more|further) details are to be made public next week
    it was a cold (morning|evening) in {loc} , with a little rain
    {per} , who lives in {loc} , was there with (two friends|the family)
    (nobody|few people) had expected (that|this)
    some waited (in|before) the building for hours
    a neighbour had told the newspaper of it first
    (everybody is happy now|it was not easy|that will take time) , said {per}
    what comes next is open
    in {loc} people (talk|talked) about (little|nothing) else
    the street in front of it was closed for an hour
    a similar case in {loc} had made headlines two years ago
    (photographs|a video) of it went around the world within hours
    {per} thanked everybody who had helped
    there were (questions|doubts) until the very end
    the {org} invited the press for (Friday|Wednesday)"""

_ONE_IN = 4
"""One in so many names and templates is in held-out articles only."""


def articles(count: int, *, held_out: bool = False, seed: int = 0) -> list[Article]:
    """Return articles, as tokens; `held_out` ones are of names and templates that the others do not have."""
    writer = _Writer(held_out=held_out, seed=seed)
    return [writer.article(TOPICS[i % len(TOPICS)]) for i in range(count)]


def text(tokens: list[str]) -> str:
    """Return tokens as one reads them."""
    joined = re.sub(r" ([,.])", r"\1", " ".join(tokens))
    return joined[0].upper() + joined[1:]


class _Writer:
    def __init__(self, *, held_out: bool, seed: int) -> None:
        self._random = random.Random(f"{held_out}{seed}")  # noqa: S311  # the same ones each time
        self._held_out = held_out

    def _mine(self, options: list[str]) -> list[str]:
        """Return the options that are for these articles."""
        return [o for i, o in enumerate(options) if (i % _ONE_IN == _ONE_IN - 1) == self._held_out]

    def _one(self, options: list[str]) -> str:
        return self._random.choice(self._mine(options))

    def article(self, topic: str) -> Article:
        details, rest = self._some(DETAILS[topic]), self._some(ANYWHERE)
        sentences = [self._one(_lines(NEWS[topic])), *details, *rest]
        self._random.shuffle(order := list(range(len(sentences))))
        names = {key: self._name(key, topic) for key in ("org", "org2", "loc", "per")}
        tokens, tags = zip(
            *(self._sentence(sentences[i], names, topic) for i in order), strict=True
        )
        return {"topic": topic, "sentences": [*tokens], "tags": [*tags], "news": order.index(0)}

    def _some(self, templates: str) -> list[str]:
        lines = self._mine(_lines(templates))
        return self._random.sample(lines, min(len(lines), self._random.randint(2, 3)))

    def _name(self, key: str, topic: str) -> str:
        if key == "per":
            return f"{self._one(FIRST)} {self._one(LAST)}"
        if key == "loc":
            return self._one(PLACES)
        pattern = self._random.choice(ORGANISATIONS[topic])
        return pattern.format(last=self._one(LAST), place=self._one(PLACES))

    def _sentence(
        self, template: str, names: dict[str, str], topic: str
    ) -> tuple[list[str], list[str]]:
        plain = re.sub(
            r"\(([^)]*)\)", lambda found: self._random.choice(found[1].split("|")), template
        )
        tokens, tags = [], []
        for word in plain.split():
            if not word.startswith("{"):
                tokens.append(word)
                tags.append("O")
                continue
            key = word.strip("{}")
            # A person is the full name once in a while, else the last one; others come in, too.
            name = names[key] if self._random.random() < 0.7 else self._name(key, topic)
            if key == "per" and self._random.random() < 0.4:
                name = name.split()[1]
            kind = key[:3].upper()
            for i, part in enumerate(name.split()):
                tokens.append(part)
                tags.append(("I-" if i else "B-") + kind)
        tokens[0] = tokens[0][0].upper() + tokens[0][1:]
        return [*tokens, "."], [*tags, "O"]


def _lines(templates: str) -> list[str]:
    return [line.strip() for line in templates.strip().splitlines()]
