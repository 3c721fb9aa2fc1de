"""Tables of the calibration study for the READMEs and the guide: rates over nominal, 1 being exact."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from .markdown import filled, line, measured_on

#: Columns of the tables: methods of the scripts, and their titles.
METHODS = {
    "generalized": "default",
    "kenward-roger": "Kenward-Roger",
    "satterthwaite": "Satterthwaite",
    "pseudobulk t": "pseudobulk t",
    "limma": "limma",
    "dream": "dream",
}
#: The same for calibration.py.
RULES = {
    "generalized": "default",
    "satterthwaite": "Satterthwaite",
    "kenward-roger, >= 0": "Kenward-Roger",
    "lmertest, >= 0": "lmerTest",
    "pseudobulk t": "pseudobulk t",
    "residual (n - p)": "n - p",
}
#: Descriptions of the kinds of contrasts of calibration.py.
KINDS = {"between": "between donors", "in part": "in one cell type", "within": "within donors"}
#: Methods whose p-values are compared between codings: the default, and those that need estimates of the variances.
CODED = (("generalized",), ("kenward-roger", "satterthwaite"))
#: Rows of the summary, and how the designs begin that they sum up.
CLASSES = {
    "effect in one cell type, 6 donors": ("effect in one type, 6 donors",),
    "effect in one cell type, 12 donors": ("effect in one type, 12 donors",),
    "joint F tests, 6 to 9 donors": ("joint F",),
    "replicates, partial pairs, visits": ("12 donors, one", "1 of 20", "4 of 20", "10 of 20", "3 visits"),
    "sites partly confounded with the treatment": ("4 sites",),
    "covariate with an outlier": ("covariate",),
    "2 to 5 cells per donor": ("12 donors of 2", "moderated, 6"),
    "three random effects, 12 donors": ("three effects: 3 batches",),
    "three random effects, 6 donors": ("three effects: 6 donors",),
    "unequal variances: see below": ("unequal",),
}


def of_donors(results: dict[str, Any]) -> str:
    """False positive rates at 5 % and 0.1 % for treatments of donors, one random effect."""
    lines = [["donors, cells of each, donor variance", *RULES.values()], ["---"] * (1 + len(RULES))]
    for row in results["rows"]:
        if row["contrast"] == "between":
            shown = (row["false"][name] for name in RULES)
            label = f"{row['donors']}, {row['cells'].removesuffix(' each')}, {row['ratio']:g}"
            lines.append([label, *(f"{rates[0]:.2f} / {rates[2]:.2f}" for rates in shown)])
    return _table(lines, f"{_genes(results['rows'][0]['genes'], (0, 2))} {measured_on(results)}")


def extremes(results: dict[str, Any]) -> str:
    """Extreme rates of the default and of two other methods, by kind of contrast."""
    titles = {"generalized": "default", "satterthwaite": "Satterthwaite", "residual (n - p)": "n - p"}
    lines = [
        ["effect", "method", "highest, 5 %", "highest, 0.1 %", "lowest, 5 %, donors differ", "lowest, 5 %, they do not"]
    ]
    lines.append(["---"] * 2 + ["---:"] * 4)
    for contrast, kind in KINDS.items():
        for name, title in titles.items():
            worst = results["worst"][name][contrast].values()
            lines.append([kind, title, *(f"{rate:.2f}" for rate in worst)])
    return "\n".join(map(line, lines))


def short(results: dict[str, Any]) -> str:
    """Sentence on the extreme rates of the default and of n - p."""
    kinds = (results["worst"][name].values() for name in ("generalized", "residual (n - p)"))
    ours, theirs = (
        [max(kind[f"most at {level}"] for kind in one) for level in ("5 %", "0.1 %")] for one in map(list, kinds)
    )
    rows = [row for row in results["rows"] if row["contrast"] != "counts"]
    return (
        f"In {len(rows)} simulated designs without effects, the false positive rate is at most {ours[0]:.2f} times the "
        f"nominal 5 % and {ours[1]:.2f} times the nominal 0.1 %; with df = n - p it reaches {theirs[0]:.2f} and "
        f"{theirs[1]:.0f} times"
    )


def summary(results: dict[str, Any]) -> str:
    """Range of the rates at 5 % and average at 0.1 % of each class of designs; FDR and codings below."""
    lines = [["design", *METHODS.values()], ["---"] * (1 + len(METHODS))]
    for title, starts in CLASSES.items():
        rows = [row for row in results["rows"] if row["design"].startswith(starts)]
        lines.append(
            [title, *(_range([row["rates"][name] for row in rows if name in row["rates"]]) for name in METHODS)]
        )
    regular = [row for row in results["rows"] if not row["design"].startswith("unequal")]
    ours, theirs = (
        max(row["codings"][name] for row in regular for name in names if name in row["codings"]) for names in CODED
    )
    text = (
        f"Lowest to highest rate at 5 %; average rate at 0.1 %. {len(results['rows'])} designs of "
        f"{results['rows'][0]['genes']:,} genes; for one design {_errors(results['rows'][0]['genes'], (0, 2))}. "
        f"{_discoveries(regular)} Between treatment, sum and "
        f"Helmert coding, log10 p of the default differs by at most {ours:.0e}, and by {theirs:.1g} with the other "
        f"tests of the mixed model, where variances are hardly identifiable. {measured_on(results)}"
    )
    return _table(lines, text)


def designs(results: dict[str, Any]) -> str:
    """Rates at 5, 1 and 0.1 % for each design, power at 5 % and 0.1 %, and false discoveries."""
    more = ["power: default", "limma", "false discoveries: default", "limma"]
    lines = [["design", "variances", *METHODS.values(), *more], ["---"] * (2 + len(METHODS) + len(more))]
    for row in results["rows"]:
        variances = ", ".join(f"{variance:g}" for variance in row["variances"])
        power = (_two(row["power"].get(name)) for name in ("generalized", "limma"))
        false = (_found(row["discoveries"].get(name)) for name in ("generalized", "limma"))
        lines.append([row["design"], variances, *_rates(row), *power, *false])
    return _table(lines, f"{_genes(results['rows'][0]['genes'])} {measured_on(results)}")


def counts(results: dict[str, Any]) -> str:
    """Rates, power and false discoveries with counts."""
    more = ["power: default", "limma", "false discoveries: default", "limma"]
    lines = [["design", "genes", *METHODS.values(), *more], ["---"] * (2 + len(METHODS) + len(more))]
    for row in results["rows"]:
        power = (_two(row["power"].get(name)) for name in ("generalized", "limma"))
        false = (_found(row["discoveries"].get(name)) for name in ("generalized", "limma"))
        lines.append([row["design"], f"{row['genes']:,}", *_rates(row), *power, *false])
    fewest, most = (pick(row["genes"] for row in results["rows"]) for pick in (min, max))
    text = f"With {fewest:,} genes {_errors(fewest)}; with {most:,} {_errors(most)}. {measured_on(results)}"
    return _table(lines, text)


def data(results: dict[str, Any]) -> str:
    """Rates on real data whose labels are permuted."""
    lines = [["permuted", "permutations", *METHODS.values()], ["---", "---:"] + ["---"] * len(METHODS)]
    lines += [[row["design"], str(row["permutations"]), *_rates(row)] for row in results["rows"]]
    alone = [row for row in results["rows"] if "one model" not in row["design"]]
    errors = [
        [3 * row["errors"]["generalized"][level] for row in alone if "generalized" in row["errors"]]
        for level in range(3)
    ]
    ranges = " / ".join(f"{min(each):.2f} to {max(each):.2f}" for each in errors)
    text = (
        f"Three standard errors of the default's rates, by the spread between permutations, are {ranges} where each "
        f"type is fitted alone. {measured_on(results)}"
    )
    return _table(lines, text)


def _rates(row: dict[str, Any]) -> list[str]:
    rates = row["rates"]
    known = {name: found for name, found in rates.items() if not any(map(math.isnan, found))}
    return [" / ".join(f"{rate:.2f}" for rate in known[name]) if name in known else "" for name in METHODS]


def _two(power: Sequence[float] | None) -> str:
    return "" if power is None else f"{power[0]:.2f} / {power[2]:.2f}"


def _found(discoveries: dict[str, float] | None) -> str:
    return "" if discoveries is None else f"{100 * discoveries['rate']:.1f} % of {discoveries['called']:,}"


def _range(rates: list[list[float]]) -> str:
    rates = [found for found in rates if not any(map(math.isnan, found))]
    if not rates:
        return ""
    at_5 = [f"{pick(rate[0] for rate in rates):.2f}" for pick in (min, max)]
    return f"{' to '.join(dict.fromkeys(at_5))}; {sum(rate[2] for rate in rates) / len(rates):.1f}"


def _discoveries(rows: list[dict[str, Any]]) -> str:
    # share of false discoveries of all designs together, by method
    shares = []
    for name, title in METHODS.items():
        found = [row["discoveries"][name] for row in rows if name in row["discoveries"]]
        called = sum(one["called"] for one in found)
        shares.append(f"{title} {100 * sum(one['rate'] * one['called'] for one in found) / called:.1f} %")
    return f"False discoveries at an FDR of 5 %, where 10 % of the genes change: {', '.join(shares)}."


def _errors(genes: int, levels: Sequence[int] = (0, 1, 2)) -> str:
    errors = (3 * ((1 - level) / (level * genes)) ** 0.5 for level in (0.05, 0.01, 0.001))
    shown = [f"{error:.2g}" for error in errors]
    return f"three Monte-Carlo errors are {' / '.join(shown[level] for level in levels)}"


def _genes(genes: int, levels: Sequence[int] = (0, 1, 2)) -> str:
    return f"{genes:,} genes per row; {_errors(genes, levels)}."


def _table(lines: list[list[str]], caption: str) -> str:
    return "\n".join([*map(line, lines), "", *filled(caption)])
