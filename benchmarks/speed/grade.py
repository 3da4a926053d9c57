"""Speed of grading: 100,000 answers of the kinds that agents give, on one core, under every policy that asks no judge.

    python benchmarks/speed/grade.py [--answers 100000] [--seed 0]

Prints the processor's seconds, microseconds per answer, and the outcomes. The keys are those of 500 questions:
ranges, numbers and names; the answers are right or wrong, in the forms and lengths that language models choose.
"""

from __future__ import annotations

import argparse
import random
import time
from collections import Counter

from nbagent_bixbench.grade import grade

GENES = "MYC KIT CDKN2A TP53 IL-6 HLA-DRB1 NKX2-5 TNF-α IFN-γ miR-21-5p".split()
UNITS = ["", "", "", "%", " mg", " kb", " genes", "-fold"]


def questions(rng: random.Random, n: int) -> list[tuple[str, str]]:
    """(key, eval mode) of n questions."""
    made = []
    for _ in range(n):
        kind, value = rng.random(), rng.lognormvariate(0, 5) * rng.choice((1, 1, 1, -1))
        if kind < 0.5:
            low, high = sorted((value * 0.98, value * 1.02))
            made.append(
                (f"({high:.4g},{low:.4g})" if rng.random() < 0.1 else f"({low:.6g},{high:.6g})", "range_verifier")
            )
        elif kind < 0.88:
            made.append((f"{value:.3g}{rng.choice(UNITS)}", "str_verifier"))
        else:
            made.append((f"{rng.choice(GENES)}{rng.choice(('', ' high', '+ T cells'))}", "str_verifier"))
    return made


def answer(rng: random.Random, key: str, mode: str) -> str:
    """An answer to such a question, in some form."""
    if mode == "str_verifier" and rng.random() < 0.3:
        return rng.choice((key, key.lower(), f" {key}\n", f"**{key}**", f"The answer is {key}.", rng.choice(GENES)))
    value = rng.lognormvariate(0, 5)
    forms = (
        f"{value!r}", f"{value:.3g}", f"{value:.2e}", f"{value:,.2f}", f"-{value:.4f}", f"−{value:.4f}",
        f"{value:.1f}%", f"{value:.2f} x 10^-{rng.randrange(9)}", f"{value:.2f}×10⁻{'⁰¹²³⁴⁵⁶⁷⁸⁹'[rng.randrange(10)]}",
        f"{value:.2f} mg",
        f"about {value:.2f}", f"{value:.2f} or {value / 2:.2f}", "", "I cannot determine this from the data.",
        f"After correction for multiple testing, {value:.0f} genes remain significant. " * rng.randrange(1, 6),
    )  # fmt: skip
    return rng.choice(forms)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--answers", type=int, default=100_000, help="how many are graded")
    parser.add_argument("--seed", type=int, default=0, help="seed of questions and answers")
    given = parser.parse_args()
    rng = random.Random(given.seed)
    keys = questions(rng, 500)
    rows = [(answer(rng, *asked), *asked) for asked in (rng.choice(keys) for _ in range(given.answers))]
    for policy in ("strict", "tolerant", "official-zeroshot"):
        start = time.process_time()
        outcomes = Counter(grade(predicted, key, mode, policy).outcome for predicted, key, mode in rows)
        seconds = time.process_time() - start
        shown = ", ".join(f"{outcome} {n}" for outcome, n in sorted(outcomes.items()))
        print(f"{policy:18} {seconds:6.2f} s  {1e6 * seconds / len(rows):6.1f} µs/answer  {shown}")


if __name__ == "__main__":
    main()
