"""Every public name is documented: all of its parameters and no others, what it returns and raises, and an example."""

from __future__ import annotations

import inspect

import pytest

import lmm_gpu

docstring_parser = pytest.importorskip("docstring_parser", reason="it reads docstrings: pip install '.[test]'")

#: What has nothing to refuse: no arguments, or none that could be wrong for the caller.
NEVER_RAISE = {
    *("LMMFit.keys", "LMMFit.variance_fractions", "SummaryStats.content", "SummaryStats.keys", "SummaryStats.mean"),
    *("SummaryStats.on", "SummaryStats.select", "SummaryStats.with_genes", "SummaryStats.without"),
}
RETURN_NOTHING = {"tl.LinearMixedModel", "LMMFit.save", "SummaryStats.save", "pl.save", "report"}


def public() -> tuple[dict, dict, dict]:
    """Functions, classes, and properties of these, by the names that users type."""
    functions, classes, properties = {}, {}, {}
    for name in lmm_gpu.__all__:
        if name == "__version__":
            continue
        found = getattr(lmm_gpu, name)
        if inspect.ismodule(found):
            functions |= {f"{name}.{inner}": getattr(found, inner) for inner in found.__all__}
        elif inspect.isclass(found):
            classes[name] = found
            for inner in (inner for inner in dir(found) if not inner.startswith("_")):
                getattr(found, inner)  # takes a method that is imported late into the class
                member = inspect.getattr_static(found, inner)
                if isinstance(member, property):
                    properties[f"{name}.{inner}"] = member.fget
                elif inspect.isfunction(member) or isinstance(member, classmethod):
                    functions[f"{name}.{inner}"] = getattr(found, inner)
        else:
            functions[name] = found
    int_has = {f"Status.{inner}" for inner in dir(int)}
    return {name: f for name, f in functions.items() if name not in int_has}, classes, properties


FUNCTIONS, CLASSES, PROPERTIES = public()


def parsed(found):
    return docstring_parser.parse(inspect.getdoc(found), style=docstring_parser.DocstringStyle.NUMPYDOC)


def documented(found) -> list[str]:
    """Names in the section Parameters; several may share a line."""
    entries = [entry for entry in parsed(found).params if entry.args[0] == "param"]
    return [name.strip() for entry in entries for name in entry.arg_name.split(",")]


def signature(found) -> list[str]:
    """Names of the parameters; methods of LMMFit are functions of the fit, their first parameter."""
    stars = {inspect.Parameter.VAR_KEYWORD: "**", inspect.Parameter.VAR_POSITIONAL: "*"}
    bound = {id(member) for member in vars(lmm_gpu.LMMFit).values() if inspect.isfunction(member)}
    parameters = list(inspect.signature(found).parameters.values())[id(found) in bound :]
    return [stars.get(one.kind, "") + one.name for one in parameters if one.name not in ("self", "cls")]


def test_there_is_something_to_test():
    assert {"fit", "tl.lmm", "pl.volcano", "LMMFit.test", "LMMFit.load", "SummaryStats.concat"} <= set(FUNCTIONS)
    assert set(CLASSES) == {"LMMFit", "Status", "SummaryStats"} and "LMMFit.theta" in PROPERTIES


@pytest.mark.parametrize("name", FUNCTIONS)
def test_parameters_are_those_of_the_signature(name):
    assert documented(FUNCTIONS[name]) == signature(FUNCTIONS[name])


def test_parameters_of_summary_statistics_are_those_of_the_signature():
    assert set(documented(lmm_gpu.SummaryStats)) == set(signature(lmm_gpu.SummaryStats))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_returns_and_raises_are_documented(name):
    page = parsed(FUNCTIONS[name])
    assert bool(page.returns) == (name not in RETURN_NOTHING)
    assert bool(page.raises) == (name not in NEVER_RAISE)
    assert all(one.type_name and one.description for one in page.raises)


@pytest.mark.parametrize("name", [*FUNCTIONS, *CLASSES])
def test_there_is_an_example(name):
    # tests/test_doctests.py runs them
    doc = inspect.getdoc({**FUNCTIONS, **CLASSES}[name])
    assert "\nExamples\n--------\n" in doc and ">>> " in doc.partition("\nExamples\n")[2]


@pytest.mark.parametrize("name", PROPERTIES)
def test_properties_say_what_they_are(name):
    assert parsed(PROPERTIES[name]).short_description
