"""Agents whose score is known beforehand: one that has the keys, one that guesses; and sets to try them on."""

import json
import random
import re
import zipfile

from nbagent_bixbench.grade import KeyVerifier

LOOK = "```python\nimport os\nprint(sorted(os.path.join(d, f) for d, _, fs in os.walk('.') for f in fs))\n```"
OPTION = re.compile(r"^([A-Z]): (.*)$", re.MULTILINE)


def perfect(rows, looks=True):
    """Says the key of the question that a prompt asks; looks at its files first, where `looks`."""
    by_text = sorted(((row.question or row.hypothesis, row) for row in rows), key=lambda pair: -len(pair[0]))

    def say(text):
        asked = [row for question, row in by_text if question in text]
        row = asked[0] if asked else next(row for row in rows if row.hypothesis in text)
        if looks and "[c1]" not in text:
            return LOOK
        return f"<answer>{key(row, text)}</answer>"

    return say


def key(row, text):
    verify = KeyVerifier(row.ideal, row.eval_mode).verify
    if "support this hypothesis" in text:
        return str(row.answer)
    options = OPTION.findall(text)
    if options:
        return next(letter for letter, option in options if verify(option).outcome == "correct")
    return row.ideal.strip("() ").split(",")[0]


def guessing(messages, seed):
    """Picks an option, or true or false, or a number, by the seed of the call alone."""
    text, draw = messages[-1]["content"], random.Random(seed)
    if "support this hypothesis" in text:
        return f"<answer>{draw.choice(['true', 'false'])}</answer>"
    letters = [letter for letter, _ in OPTION.findall(text)]
    return f"<answer>{draw.choice(letters) if letters else draw.random()}</answer>"


def write_set(folder, rows, files=(("CapsuleData-u/a.csv", "x,y\n1,3\n"),)):
    """A set of these rows (what they lack is filled in) with one capsule."""
    folder.mkdir(parents=True)
    lines = []
    for number, row in enumerate(rows, start=1):
        base = {
            "question_id": f"bix-90-q{number}", "question": f"What is x + y, number {number}?", "ideal": "4",
            "distractors": ["5", "6", "7"], "eval_mode": "str_verifier", "capsule_uuid": "u",
            "data_folder": "CapsuleFolder-u.zip", "categories": "A, B", "answer": number % 2 == 0,
            "hypothesis": f"The sum grows with the row's number {number}.", "result": "It is four.",
        }  # fmt: skip
        lines.append(json.dumps({**base, **row}) + "\n")
    (folder / "BixBench.jsonl").write_text("".join(lines))
    with zipfile.ZipFile(folder / "CapsuleFolder-u.zip", "w") as archive:
        for name, content in files:
            archive.writestr(name, content)
    return folder
