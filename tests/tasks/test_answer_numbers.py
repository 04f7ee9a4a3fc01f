"""Numbers as people and models write them, each with its exact value."""

from __future__ import annotations

import gzip
import json
import re
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmoe_app.tasks.answer_numbers import first_number, last_number, whole_number
from fedmoe_app.tasks.causal_lm import final_number, is_match
from tests.conftest import SHARED_DATA


@pytest.mark.parametrize(
    ("text", "value"),
    [
        # Signs.
        ("−5", "-5"),  # minus sign
        ("‑5", "-5"),  # non-breaking hyphen
        ("–5", "-5"),  # en dash
        ("－５", "-5"),  # full-width
        ("−$5", "-5"),
        ("$−5", "-5"),
        ("-€ 5", "-5"),
        ("+5", "5"),
        # Thousands.
        ("1,234,567", "1234567"),
        ("1 234 567", "1234567"),
        ("1\u00a0234", "1234"),
        ("1\u202f234.5", "1234.5"),
        ("1\u2009234", "1234"),
        ("-12 000", "-12000"),
        ("$409 500.", "409500"),
        ("1'234'567", "1234567"),
        ("1’234", "1234"),
        ("1.234.567", "1234567"),
        ("1 234,50", "1234.5"),
        ("1 234.567", "1234.567"),
        (r"1{,}234", "1234"),
        (r"12\,345", "12345"),
        (r"10,\!000", "10000"),
        ("1.234", "1.234"),
        # Exponents.
        ("1e3", "1000"),
        ("1.5E-3", "0.0015"),
        ("2e+2", "200"),
        ("1.5×10^3", "1500"),
        ("1.5 × 10^{3}", "1500"),
        ("1.5 x 10^3", "1500"),
        ("1.5*10**3", "1500"),
        ("1.5·10³", "1500"),
        ("4 × 10⁻²", "0.04"),
        (r"1.5 \times 10^{-3}", "0.0015"),
        (r"2\cdot 10^{−1}", "0.2"),
        ("10^3", "1000"),
        ("-3e2", "-300"),
        # Fractions.
        ("1/2", "1/2"),
        ("-1/2", "-1/2"),
        ("3 / 4", "3/4"),
        ("1⁄2", "1/2"),
        ("3 1/2", "7/2"),
        ("-3 1/2", "-7/2"),
        ("½", "1/2"),
        ("−½", "-1/2"),
        ("3½", "7/2"),
        ("3 ½", "7/2"),
        ("⅔", "2/3"),
        ("1,000/3", "1000/3"),
        ("1.5/2", "3/4"),
        (r"\frac{1}{2}", "1/2"),
        (r"-\dfrac{3}{4}", "-3/4"),
        (r"\frac{-3}{4}", "-3/4"),
        (r"3\frac{1}{2}", "7/2"),
        (r"\frac12", "1/2"),
        (r"$\tfrac{1}{2}$", "1/2"),
        # Units and full stops.
        ("42.", "42"),
        ("50%", "50"),
        ("50 %.", "50"),
        (r"\$18.00", "18"),
        ("18 €", "18"),
        ("£.50", "1/2"),
        ("٣٫", None),
        ("٣", "3"),
    ],
)
def test_a_text_that_is_one_number(text: str, value: str | None) -> None:
    expected = None if value is None else Fraction(value)
    assert whole_number(text) == expected
    if expected is not None:
        assert last_number(text) == first_number(text) == expected
        assert final_number(f"It is 9 at first, but then {text}") == expected
        assert final_number(f"It is 9 at first.\n#### {text}\nNext: 7 and 8") == expected
        assert is_match(f"so {text}", text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("10-5", 5),
        ("10−5", 5),  # nothing but the sign's character differs
        ("10–5", 5),
        ("(3+7)−5", 5),
        ("50%-5", 5),
        (r"\frac{1}{2}-5", 5),
        ("x = 2y-5", 5),
        ("10 - 5", 5),
        ("the answer — 5", 5),
        ("the answer —5", 5),  # an em dash is punctuation
        ("10 −5", -5),
        ("24/3 = 8", 8),
        ("on 1/2/2024", 2024),
        ("3 / 4 / 5", 5),
        ("1/0", 0),
        ("4 22/7", Fraction(22, 7)),  # improper: two numbers
        ("of 5, 1/2", Fraction(1, 2)),
        ("in 2020 100 people", 100),
        ("1234 567", 567),
        ("2.5 100", 100),
        ("1 2 3", 3),
        ("12 34", 34),
        ("12 3456", 3456),
        ("0 123", 123),
        ("0.2 x 50", 50),
        ("2e", 2),
        ("3e5x", 5),
        ("110²", 110),
        ("10 m²", 10),
        ("1,2 and 3", 3),
    ],
)
def test_the_last_number_of_a_longer_text(text: str, value: Fraction | int) -> None:
    assert last_number(text) == value


@pytest.mark.parametrize(
    "number",
    [
        "1e999999999",
        "1e-999999999",
        "10^999999999",
        "2×10^{999999999}",
        "9" * 5000,
        "1e" + "9" * 9000,
    ],
)
def test_a_number_without_measure_is_none(number: str) -> None:
    assert whole_number(number) is last_number(number) is first_number(number) is None
    assert final_number(f"1 and 2\n#### {number}") is None
    assert not is_match(number, "1") and not is_match(f"#### {number}", "#### 0")
    assert is_match(number, number)  # as text


def test_large_numbers_are_exact() -> None:
    assert is_match("1e999", "1" + "0" * 999)
    assert not is_match("1e999", "1" + "0" * 998 + "1")
    assert not is_match("0.1000000000000000000001", "0.1")
    assert not is_match("0.333333", "1/3") and is_match("2/6", "1/3")


@pytest.mark.parametrize(
    "part",
    ["9", "1,", "1 000 ", "1/", "1 1/", "1e", "10^", "½", r"\frac{", r"\frac{1}{", "-", "$ "],
)
def test_long_answers_take_time_in_proportion(part: str) -> None:
    last_number(part * 50_000)  # anything quadratic would not come back


@pytest.mark.parametrize(
    ("answer", "reference", "match"),
    [
        ("She gets −3 points.", "#### -3", True),
        ("It is 1 250 in all.", "#### 1,250", True),
        ("about 1.25×10^3", "#### 1250", True),
        ("half, that is 0.5", "#### 1/2", True),
        ("1", "#### 1/2", False),
        ("so 3½ cups", "3 1/2", True),
        ("50%", "#### 50", True),
        ("0.5", "#### 50", False),
        ("50", "50%", True),
        ("the answer is 42", "42.", True),
        ("12/25/2024", "12/25/2024", True),
        ("2024", "12/25/2024", False),  # a date is text
        ("10-5", "10-5", True),
        ("5", "10-5", False),
    ],
)
def test_matches(answer: str, reference: str, match: bool) -> None:
    assert is_match(answer, reference) is match


SEPARATORS = [",", " ", "\u00a0", "\u202f", "'", "’", "{,}", r"\,"]


@given(
    st.integers(-(10**15), 10**15),
    st.integers(0, 6),
    st.sampled_from(SEPARATORS),
    st.sampled_from("-−–"),
)
def test_every_way_to_write_a_decimal(digits: int, places: int, comma: str, minus: str) -> None:
    value = Fraction(digits, 10**places)
    whole, rest = divmod(abs(digits), 10**places)
    sign = minus if digits < 0 else ""
    grouped = sign + f"{whole:,}".replace(",", comma)
    decimals = f".{rest:0{places}d}" if places else ""
    times = f"{sign}{abs(digits)} × 10^-{places}"
    short = f"{sign}{abs(digits)}e-{places}"
    for text in (f"{sign}{whole}{decimals}", f"{grouped}{decimals}", times, short):
        assert whole_number(text) == value
        assert final_number(f"We had 3 and get {text}.") == value
        assert is_match(f"#### {text}", f"as computed\n#### {digits}e-{places}")


@given(st.integers(0, 999), st.integers(1, 10**6), st.integers(1, 10**6), st.booleans())
def test_every_way_to_write_a_fraction(whole: int, top: int, more: int, negative: bool) -> None:
    bottom, sign = top + more, "-" if negative else ""
    proper = Fraction(top, bottom)
    for text in (f"{top}/{bottom}", f"{top} / {bottom}", rf"\frac{{{top}}}{{{bottom}}}"):
        assert whole_number(sign + text) == (-proper if negative else proper)
    for text in (f"{whole} {top}/{bottom}", rf"{whole}\frac{{{top}}}{{{bottom}}}"):
        assert whole_number(sign + text) == (-1 if negative else 1) * (whole + proper)


# Of EleutherAI's lm-evaluation-harness, lm_eval/tasks/gsm8k/gsm8k.yaml.
STRICT = re.compile(r"#### (\-?[0-9\.\,]+)")
FLEXIBLE = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")


def harness_strict(text: str) -> str:
    found = STRICT.search(text)
    return harness_clean(found[1]) if found else "[invalid]"


def harness_flexible(text: str) -> str:
    found = [first or second for first, second in FLEXIBLE.findall(text)]
    return harness_clean(found[-1]) if found else "[invalid]"


def harness_clean(text: str) -> str:
    return re.sub(r",|\$|(?s:.*)#### |\.$", "", text).lower()


@pytest.mark.skipif(not (SHARED_DATA / "gsm8k").is_dir(), reason="shared/data is not there")
@pytest.mark.parametrize("part", ["train", "test"])
def test_gsm8k_is_scored_as_by_lm_evaluation_harness(part: str) -> None:
    with gzip.open(SHARED_DATA / f"gsm8k/{part}.jsonl.gz", "rt", encoding="utf-8") as lines:
        responses = [json.loads(line)["response"] for line in lines]
    assert len(responses) == {"train": 7473, "test": 1319}[part]
    for response, other in zip(responses, responses[1:] + responses[:1], strict=True):
        target = harness_clean(response)
        assert final_number(response) == Fraction(harness_strict(response)) == Fraction(target)
        assert is_match(response, response)
        assert is_match(other, response) == (harness_strict(other) == target)
        plain = other.replace("####", "The answer is") + "."
        assert is_match(plain, response) == (harness_flexible(plain) == target)
        paid = f"{other.partition('#')[0]}So she pays ${target}."
        assert is_match(paid, response) and harness_flexible(paid) == target
