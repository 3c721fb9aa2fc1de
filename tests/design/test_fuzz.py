"""Random formulas, contrasts and queries: an answer or a ValueError in one line, within the time limit, never code."""

from __future__ import annotations

import random
import signal
from contextlib import contextmanager

import numpy as np
import pandas as pd
import pytest

from lmm_gpu.design.cell_query import matching_cells
from lmm_gpu.design.contrasts import contrast_rows
from lmm_gpu.design.design import build_design, fixed_design, used_cells

SECONDS, TRIES = 5, 150
N = 40
RNG = np.random.default_rng(0)
OBS = pd.DataFrame(
    {
        "a": RNG.choice(list("xyz"), N),
        "b": pd.Categorical(RNG.choice(["u v", "w"], N), ordered=True),
        "x": RNG.normal(size=N),
        "count": RNG.integers(0, 5, N).astype("int8"),
        "day": 20_240_100 + RNG.integers(1, 29, N),
        "flag": RNG.random(N) < 0.5,
        "Treatment": RNG.choice(["t", "c"], N),
        "cell type": RNG.choice(["B", "T"], N),
        "hole": np.where(RNG.random(N) < 0.1, np.nan, RNG.normal(size=N)),
        "donor": np.repeat(list("pqrstuvw"), 5),
        "one": 1.0,
        "date": pd.date_range("2024-01-01", periods=N),
    }
)
NAMES = ["a", "b", "x", "count", "day", "flag", "Treatment", "`cell type`", "hole", "donor", "one", "date", "zzz",
         "1", "0", ".", "True", "'t'", "9", "1e400", "np", "C", "__import__"]  # fmt: skip
CALLS = ["C({})", "I({})", "log({})", "np.sqrt({})", "scale({})", "poly({}, 2)", "poly({}, 99)", "bs({}, df=4)",
         "cr({}, df=3)", "C({}, contr.sum)", "C({}, Treatment)", "C({}, levels=['x', 'y', 'z'])", "factor({})",
         "ns({})", "({})", "({})**3", "({})**99", "-({})", "{{{}}}", "[{}]", "open({})", "I({} ** 2)",
         "I({}.mean())", "`{}`", "C({}, {{'p': [1, 0, -1]}})", "lambda: {}", "I({} if 1 else 2)", "'{}'"]  # fmt: skip
OPERATORS = ["+", "*", ":", "-", "/", "|", "||", "~", "**", "%in%", " ", "==", "<", "&", " in ", ",", ")", "("]
NOISE = list("()[]{}'\"`\\|~+*:/.,;#@!?%^&=<> \n\t0123456789abx\u00e9\u2028\U0001f9ec")


def piece(rng, depth=0):
    if depth > 3 or rng.random() < 0.4:
        return rng.choice(NAMES)
    if rng.random() < 0.5:
        return rng.choice(CALLS).format(piece(rng, depth + 1))
    return f"{piece(rng, depth + 1)} {rng.choice(OPERATORS[:5] * 5 + OPERATORS)} {piece(rng, depth + 1)}"


def formula(rng):
    bars = ["|", "|", "|", "||"]
    random_terms = [f"({piece(rng, 2)} {rng.choice(bars)} {piece(rng, 3)})" for _ in range(rng.randint(0, 2))]
    good = ["(1 | donor)"] if rng.random() < 0.7 else []
    return "~ " + " + ".join([piece(rng), *random_terms, *good])


def contrast(rng):
    names = ["Intercept", "a[T.y]", "a[T.z]", "x", "a[T.y]:x", "log(x + 1)", "2", "zzz", "1e5", "(", ")"]
    return rng.choice(["", " "]).join(
        rng.choice([*names, "+", "-", "*", "/", "2", "-1"]) for _ in range(rng.randint(0, 9))
    )


def query(rng):
    sides = [
        *NAMES,
        "x > 0",
        "a == 'x'",
        "a in ['x', 'y']",
        "not flag",
        "count >= 2",
        "`cell type` != 'B'",
        "[1, 2]",
        "None",
    ]
    return " ".join(
        rng.choice([*sides, "and", "or", "not", "==", "<", "in", "&", "|", "(", ")"]) for _ in range(rng.randint(0, 7))
    )


def mutated(rng, text):
    characters = list(text)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(characters) + 1)
        characters[place : place + rng.randint(0, 2)] = rng.choice([*NOISE, "(" * 60, "-" * 500, "x" * 12_000])
    return "".join(characters)


def columns(rng, text):
    design = build_design(text, OBS[used_cells(text, OBS)])
    assert np.isfinite(design.X).all() and design.X.shape == (design.n, len(set(design.fixed_names)))
    assert np.isfinite(design.Z.data).all() and sum(design.d) == design.Z.shape[1] == len(set(design.random_names))


def fixed(rng, text):
    X, names = fixed_design(text, OBS)
    assert np.isfinite(X).all() and len(names) == X.shape[1]


def rows(rng, text):
    found, _ = contrast_rows(text, ["Intercept", "a[T.y]", "a[T.z]", "x", "a[T.y]:x", "log(x + 1)", "2"])
    assert np.isfinite(found).all() and found.any()


def cells(rng, text):
    assert matching_cells(text, OBS)[0].shape == (N,)


KINDS = {"design": (formula, columns), "fixed": (piece, fixed), "contrast": (contrast, rows), "query": (query, cells)}


@contextmanager
def time_limit(what):
    def late(*_):
        raise TimeoutError(f"more than {SECONDS} s for {what[:300]!r}")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", KINDS)
def test_a_result_or_a_one_line_error(kind, seed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make, use = KINDS[kind]
    rng = random.Random(f"{kind}{seed}")
    answered = 0
    for _ in range(TRIES):
        text = make(rng)
        text = mutated(rng, text) if rng.random() < 0.3 else text
        with time_limit(text):
            try:
                use(rng, text)
                answered += 1
            except ValueError as error:
                assert 10 < len(str(error)) < 1_500 and "\n" not in str(error), text
    assert answered and not list(tmp_path.iterdir())
