"""Questions over survival tables."""

from __future__ import annotations

from random import Random

import pandas as pd

from nbagent_bixbench.families.draft import Capsule, Draft, Family, Kind, look
from nbagent_bixbench.families.words import CONDITIONS, file_name, names


def draw(r: Random) -> Capsule:
    """30–40 patients in two or three arms, about 65 % with an event."""
    group, time = r.choice(("arm", "group", "site")), r.choice(("time", "months", "days"))
    arms, n = names(r, CONDITIONS, r.randint(2, 3)), r.randint(30, 40)
    scale = {arm: r.uniform(15, 60) for arm in arms}
    placed = [r.choice(arms) for _ in range(n)]
    table = pd.DataFrame(
        {
            group: placed,
            time: [1 + int(r.expovariate(1 / scale[arm])) for arm in placed],
            "event": [int(r.random() < 0.65) for _ in placed],
            "age": [r.randint(30, 85) for _ in placed],
        },
        index=pd.Index([f"p{i + 1}" for i in range(n)], name="patient"),
    )
    file = file_name(r)
    return Capsule({file: table}, {"file": file, "group": group, "time": time, "arms": arms})


SURVIVAL = Kind("survival", draw)


def arm_events(r: Random, c: Capsule) -> Draft:
    """Events in an arm."""
    group, arm = c.facts["group"], r.choice(c.facts["arms"])
    wording = (
        f"How many patients of {group} {arm} had the event?",
        f"What is the number of events in {group} {arm}?",
        f"Count the patients with event 1 in {group} {arm}.",
    )
    second = f'print(((df["{group}"]=="{arm}")&(df["event"]==1)).sum())'
    rivals = (f'print((df["{group}"]=="{arm}").sum())', f'print(((df["{group}"]=="{arm}")&(df["event"]==0)).sum())')
    return Draft(r.choice(wording), (group, arm), (look(c.facts["file"]), second), rivals=rivals)


def event_median(r: Random, c: Capsule) -> Draft:
    """Median time among the patients of an arm who had the event."""
    group, time, arm = c.facts["group"], c.facts["time"], r.choice(c.facts["arms"])
    wording = (
        f"What is the median {time} of patients with an event in {group} {arm}?",
        f"In {group} {arm}, what is the median {time} among those with event 1?",
        f"Give the median {time} of {group} {arm} patients who had the event.",
    )
    second = f'print(df[(df["{group}"]=="{arm}")&(df["event"]==1)]["{time}"].median())'
    rivals = (
        f'print(df[df["{group}"]=="{arm}"]["{time}"].median())',
        f'print(df[(df["{group}"]=="{arm}")&(df["event"]==0)]["{time}"].median())',
    )
    return Draft(r.choice(wording), (group, time, arm), (look(c.facts["file"]), second), rivals=rivals)


FAMILIES = (
    Family("arm_events", "events in an arm", SURVIVAL, arm_events),
    Family("event_median", "median time among those with an event in an arm", SURVIVAL, event_median),
)
