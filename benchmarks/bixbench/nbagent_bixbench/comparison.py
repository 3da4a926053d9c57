"""Runs on the same questions, compared: paired differences with intervals, and performance profiles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nbagent.compare import Comparison
from nbagent.errors import UsageError
from nbagent.stats import PairedDifference, paired_difference
from nbagent_bixbench.profile import Profile, performance_profiles
from nbagent_bixbench.results import Mode, Result
from nbagent_bixbench.summary import counts_by_question


@dataclass(frozen=True, slots=True)
class ModeComparison:
    """Some runs compared in one mode."""

    mode: Mode
    names: tuple[str, ...]
    """The runs, in the order given."""
    differences: tuple[Comparison, ...]
    """Each other run minus the first; its families are the eval modes."""
    profiles: tuple[Profile, ...]
    """In the order of the names; empty where no question was solved by any."""
    n_unsolved: int
    """Questions attempted by all and solved by none."""

    @property
    def named_profiles(self) -> list[tuple[str, Profile]]:
        """Each run's name with its profile."""
        return list(zip(self.names, self.profiles, strict=False))


def compare_runs(runs: Mapping[str, Sequence[Result]], *, seed: int = 0) -> list[ModeComparison]:
    """The comparison in every mode that all runs have.

    Questions are paired by id, up to case; what not all runs have graded is left out and counted.

    Args:
        runs: graded results by the run's name; the first is what the others are compared with.
        seed: seed of the bootstraps.

    Raises:
        UsageError: the runs share no mode or no graded question, were graded by different policies, or one question
            id has two keys.
    """
    _same_policy(runs)
    _same_keys(runs)
    modes = [mode for mode in _MODES if all(any(row.mode == mode for row in rows) for rows in runs.values())]
    if not modes:
        raise UsageError(f"{', '.join(runs)}: have no mode in common; nothing to compare")
    return [_in_mode(mode, runs, seed) for mode in modes]


_MODES: tuple[Mode, ...] = ("open", "mcq", "mcq_refusal", "hypothesis")


def _in_mode(mode: Mode, runs: Mapping[str, Sequence[Result]], seed: int) -> ModeComparison:
    rows = [[row for row in results if row.mode == mode] for results in runs.values()]
    counts = [counts_by_question(results) for results in rows]
    kinds = {row.question_key: row.eval_mode for results in rows for row in results}
    (first, *others), names = counts, tuple(runs)
    shared = set.intersection(*({name for name, (n, _) in count.items() if n} for count in counts))
    solved = any(count[name][1] for count in counts for name in shared)
    return ModeComparison(
        mode=mode,
        names=names,
        differences=tuple(
            _difference(names[0], name, first, other, kinds, seed)
            for name, other in zip(names[1:], others, strict=True)
        ),
        profiles=tuple(performance_profiles(counts)) if solved else (),
        n_unsolved=sum(not any(count[name][1] for count in counts) for name in shared),
    )


def _difference(
    before: str,
    after: str,
    was: Mapping[str, tuple[int, int]],
    now: Mapping[str, tuple[int, int]],
    kinds: Mapping[str, str],
    seed: int,
) -> Comparison:
    shared = sorted(name for name in was.keys() & now.keys() if was[name][0] and now[name][0])
    if not shared:
        raise UsageError(f"{before} and {after}: no question was graded in both; nothing to compare")

    def paired(names: Sequence[str]) -> PairedDifference:
        before_values, after_values = ([count[name][1] / count[name][0] for name in names] for count in (was, now))
        return paired_difference(before_values, after_values, seed=seed)

    by_kind = {kind: [name for name in shared if kinds[name] == kind] for kind in sorted(set(kinds.values()))}
    families = {kind: paired(names) for kind, names in by_kind.items() if names} if len(by_kind) > 1 else {}
    return Comparison(before, after, paired(shared), families, len(was.keys() | now.keys()) - len(shared))


def _same_policy(runs: Mapping[str, Sequence[Result]]) -> None:
    policies = {name: sorted({row.policy or "unknown" for row in rows}) for name, rows in runs.items()}
    if len({tuple(found) for found in policies.values()}) > 1:
        said = "; ".join(f"{name}: {', '.join(found)}" for name, found in policies.items())
        raise UsageError(f"the runs were graded by different policies ({said}); name one with --policy")


def _same_keys(runs: Mapping[str, Sequence[Result]]) -> None:
    known: dict[tuple[str, bool], tuple[str, str]] = {}
    for name, rows in runs.items():
        for row in rows:
            key = row.question_key, row.mode == "hypothesis"
            ideal, first = known.setdefault(key, (row.ideal, name))
            if ideal != row.ideal:
                raise UsageError(f"{row.question_id!r} has another key in {name} than in {first}; compare one set")
