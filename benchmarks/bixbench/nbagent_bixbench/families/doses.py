"""Questions over dose-response plates."""

from __future__ import annotations

from random import Random

import pandas as pd

from nbagent_bixbench.families.draft import Capsule, Draft, Family, Kind, look
from nbagent_bixbench.families.words import file_name


def draw(r: Random) -> Capsule:
    """Six doses in triplicate, a Hill curve from 100 down with noise of about 5."""
    dose, response = r.choice(("dose", "conc", "um")), r.choice(("resp", "viab", "signal"))
    doses = sorted(r.sample(range(1, 99), 6)) if r.random() < 0.5 else sorted(r.sample(range(5, 400, 5), 6))
    half = r.uniform(doses[0], doses[-1])
    rows = [(x, round(100 / (1 + (x / half) ** 1.5) + r.gauss(0, 5), 1)) for x in doses for _ in range(3)]
    table = pd.DataFrame(
        rows, columns=[dose, response], index=pd.Index([f"w{i + 1}" for i in range(len(rows))], name="well")
    )
    file = file_name(r)
    return Capsule({file: table}, {"file": file, "dose": dose, "response": response, "doses": doses})


DOSES = Kind("doses", draw)


def half_dose(r: Random, c: Capsule) -> Draft:
    """Dose whose mean response is nearest to 50."""
    dose, response = c.facts["dose"], c.facts["response"]
    wording = (
        f"Which {dose} has the mean {response} nearest to 50?",
        f"At which {dose} is the mean {response} closest to 50?",
        f"Give the {dose} whose mean {response} lies nearest to 50.",
    )
    head = f'm=df.groupby("{dose}")["{response}"].mean()\n'
    second = head + "print((m-50).abs().idxmin())"
    rivals = (head + "print((m-50).idxmin())", head + "print(m.idxmax())")
    twins = (head + "print((m-50)[::-1].abs().idxmin())",)
    choices = tuple(str(x) for x in c.facts["doses"])
    cells = (look(c.facts["file"]), second)
    return Draft(r.choice(wording), (dose, response), cells, rivals=rivals, twins=twins, choices=choices)


def dose_mean(r: Random, c: Capsule) -> Draft:
    """Mean response at a dose."""
    dose, response, x = c.facts["dose"], c.facts["response"], r.choice(c.facts["doses"])
    wording = (
        f"What is the mean {response} at {dose} {x} (1 decimal)?",
        f"At {dose} {x}, what is the mean {response} (1 decimal)?",
        f"Give the mean {response} of the wells with {dose} {x}, 1 decimal.",
    )
    second = f'print(round(df[df["{dose}"]=={x}]["{response}"].mean(),1))'
    rivals = (f'print(round(df["{response}"].mean(),1))', f'print(round(df[df["{dose}"]=={x}]["{response}"].max(),1))')
    cells = (look(c.facts["file"]), second)
    return Draft(r.choice(wording), (dose, response, str(x)), cells, "range_verifier", 1, rivals)


FAMILIES = (
    Family("half_dose", "dose with a mean response nearest to 50", DOSES, half_dose),
    Family("dose_mean", "mean response at a dose", DOSES, dose_mean),
)
