"""The policies `official-zeroshot` and `official-agentic`: what the two published scorers compute, faults included.

They exist so that published numbers can be compared; the rules are theirs, the code and the judge's prompt are ours.
Known faults that are kept, because they decide scores:

* zero-shot, `str_verifier`: all but ASCII letters and digits is dropped before comparing, so sign, point and exponent
  do not count (`133` is `1.33`) and other forms of a number are wrong until a judge says otherwise;
* zero-shot, `str_verifier`: an answer that is *contained in* the key is correct, the empty answer in every key;
* zero-shot, `range_verifier`: the numeric test is never reached for open answers; a judge decides, whatever the number.
  The test itself would raise on every number outside the range and on reversed bounds, which is why a row that it had
  been used on is in no published file;
* both: an answer that the judge calls refused is incorrect, so that every open answer counts as sure;
* agentic: the eval mode is not looked at; a judge decides all;
* multiple choice: only `<answer>X</answer>` with one capital and no blank is a choice; the first one counts; all else
  is the letter Z, which is wrong.

What is not reproduced: the published judges, whose models are retired, and how one was picked. The agentic scorer
looked for `4o` or `claude` in the run's name; a run of another name was never graded, and its published accuracy is 0
whatever it answered. Here whoever grades names the judge.
"""

from __future__ import annotations

import re

from nbagent.tasks import Outcome, Verdict

NO_LETTER = "Z"
"""What the published parser makes of an answer it cannot read."""
_DROPPED = re.compile(r"[^a-zA-Z0-9]")
_TAGGED = re.compile(r"<answer>([A-Z])</answer>")


def compare(predicted: str, ideal: str) -> Verdict | None:
    """The zero-shot scorer's verdict on a `str_verifier` row; None where it goes on to ask a judge.

    Example:
        >>> compare("", "0.05").outcome, compare("-4.96", "4.96").outcome, compare("2e-4", "0.0002")
        (<Outcome.CORRECT: 'correct'>, <Outcome.CORRECT: 'correct'>, None)
    """
    answer, key = (_DROPPED.sub("", text).lower() for text in (predicted, ideal))
    if answer == key:
        return Verdict(Outcome.CORRECT, "letters and digits are the key's")
    if answer in key:
        return Verdict(Outcome.CORRECT, "letters and digits are contained in the key's")
    return None


def official_letter(text: str) -> str:
    """The letter that the published parser reads: the first `<answer>X</answer>` with one capital, else Z."""
    found = _TAGGED.search(text)
    return found[1] if found else NO_LETTER
