"""Units: which of them are the same, and which can be converted into each other."""

from __future__ import annotations

from decimal import Decimal

PERCENT = "%"

_SCALES: dict[str, dict[str, str]] = {
    "length": {"Å": "1e-10", "nm": "1e-9", "um": "1e-6", "mm": "1e-3", "cm": "1e-2", "m": "1", "km": "1e3"},
    "sequence": {"bp": "1", "kb": "1e3", "Mb": "1e6", "Gb": "1e9"},
    "mass": {"pg": "1e-12", "ng": "1e-9", "ug": "1e-6", "mg": "1e-3", "g": "1", "kg": "1e3"},
    "molecule": {"Da": "1", "kDa": "1e3", "MDa": "1e6"},
    "volume": {"nL": "1e-9", "uL": "1e-6", "mL": "1e-3", "L": "1"},
    "amount": {"pmol": "1e-12", "nmol": "1e-9", "umol": "1e-6", "mmol": "1e-3", "mol": "1"},
    "concentration": {"pM": "1e-12", "nM": "1e-9", "uM": "1e-6", "mM": "1e-3", "M": "1"},
    "time": {"ms": "1e-3", "s": "1", "min": "60", "h": "3600", "d": "86400", "wk": "604800"},
    "share": {PERCENT: "1"},
    "temperature": {"°C": "1"},
    "fold": {"fold": "1"},
}
_COUNTED = (
    "base cell cluster contig donor exon feature gene group isoform locus marker month mutation mouse pathway patient "
    "peak peptide percentile position protein read residue sample sequence site SNP species subject taxon term "
    "transcript variant year"
)
_PLURALS = {"locus": "loci", "mouse": "mice", "species": "species", "taxon": "taxa"}
_ALIASES = {
    "percent": PERCENT, "per cent": PERCENT, "pct": PERCENT, "ul": "uL", "ml": "mL", "nl": "nL", "l": "L",
    "kbp": "kb", "Mbp": "Mb", "Gbp": "Gb", "nt": "bp", "sec": "s", "second": "s", "seconds": "s", "mins": "min",
    "minute": "min", "minutes": "min", "hr": "h", "hrs": "h", "hour": "h", "hours": "h", "day": "d", "days": "d",
    "week": "wk", "weeks": "wk", "x": "fold", "×": "fold", "-fold": "fold", "fold-change": "fold", "yr": "year",
    "yrs": "year", "Angstrom": "Å",
}  # fmt: skip

_FACTORS = {unit: (kind, Decimal(factor)) for kind, scale in _SCALES.items() for unit, factor in scale.items()}
_FACTORS |= {noun: (noun, Decimal(1)) for noun in _COUNTED.split()}
_NAMES = {unit: unit for unit in _FACTORS} | _ALIASES
_NAMES |= {_PLURALS.get(noun, f"{noun}s"): noun for noun in _COUNTED.split()}
# Long names are words and have no case; of symbols it is part: mM is no MM, Mb no mb.
_WORDS = {name.casefold(): unit for name, unit in _NAMES.items() if len(name) > 3}


def unit(text: str) -> str | None:
    """The one name of a unit or of a counted thing; `""` for the empty text, None for what is no known unit.

    Case counts in symbols, not in words.

    Example:
        >>> unit("Minutes"), unit("µg/ml"), unit("MM"), unit("or 4")
        ('min', 'ug/mL', None, None)
    """
    if not text:
        return ""
    parts = text.replace("µ", "u").replace("μ", "u").split("/")
    known = [_NAMES.get(part) or _WORDS.get(part.casefold()) for part in (p.strip() for p in parts)]
    return "/".join(part for part in known if part) if all(known) else None


def conversion(given: str, wanted: str) -> Decimal | None:
    """What a value in one unit is multiplied by to be in another; None where they measure different things.

    Example:
        >>> conversion("mg", "ug")
        Decimal('1E+3')
    """
    if given == wanted:
        return Decimal(1)
    if given not in _FACTORS or wanted not in _FACTORS:
        return None
    (kind, factor), (other, divisor) = _FACTORS[given], _FACTORS[wanted]
    return factor / divisor if kind == other else None
