"""One number is read as people write it, and what is not one number as none."""

from fractions import Fraction

import pytest

from reward_fns.stated import one_number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        *[(f"1{gap}200", "1200") for gap in (",", "{,}", ",\\!", "\\,", "\\ ", "\u2009", "\u202f")],
        *[(f"{minus}5", "-5") for minus in ("-", "\u2212", "\u2013", "\uff0d")],
        *[("-$1,234,567.50", "-1234567.5"), ("$-5", "-5"), ("\\$72", "72"), ("5\u00a0000", "5000")],
        *[("5.", "5"), (".5", "1/2"), ("72.00", "72"), ("**18**", "18"), ("$18$", "18")],
        *[
            ("\\frac{7}{2}", "7/2"),
            ("\\dfrac12", "1/2"),
            ("7/2", "7/2"),
            ("+5", "5"),
            ("\\frac{-1}{2}", "-1/2"),
            ("-\\frac{1}{2}", "-1/2"),
        ],
        *[("1 1/2", "3/2"), ("1\\frac{1}{2}", "3/2"), ("-1 \\tfrac12", "-3/2"), ("11/2", "11/2")],
        *[("3 \\times 10^5", "300000"), ("3*10^{5}", "300000"), ("10^2", "100"), ("2e3", "2000")],
        *[("50\\%", "50"), ("72 dollars", "72"), ("72\\text{ cm}^2", "72"), ("90^\\circ", "90")],
        *[("72 m^{3}", "72"), ("60 miles/hour", "60"), ("1/2 cup", "1/2"), ("2:00 pm", "2")],
        *[("x = 18", "18"), ("3*5 = 15", "15"), ("\\text{Total: }\\$18", "18")],
        *[("The third jar contains 30 more beans than the second", "30"), ("pre-tax: 5", "5")],
        *[("The friends found 30 eggs.", "30"), ("\\textbf{18}", "18")],
    ],
)
def test_numbers(text, number):
    assert one_number(text) == Fraction(number)


@pytest.mark.parametrize(
    "text",
    [
        *("", "five", "2 3", "1 200", "20, 30", "1,2", "1,200,30", "0,500", "1.200,50", "1.5.2"),
        *(
            "5-6",
            "5\u20136",
            "5 to 6",
            "1:2",
            "2:10 pm",
            "x=18, y=19",
            "x_1 = 2, x_2 = 3",
            "4 (3 red and 1 blue)",
            "\\text{2 3}",
        ),
        *(
            "72x",
            "72\\pi",
            "5\\sqrt{2}",
            "\\sqrt{4}",
            "2^3",
            "3 \\times 4",
            "3 + 4i",
            "5+",
            "\\infty",
        ),
        *(
            "> 5",
            "\\pm 5",
            "minus 5",
            "not 5",
            "over 18 hours",
            "half of 8",
            "more than 5",
            "log 2",
            "B12",
            "x \\neq 5",
            "160 - r",
        ),
        *("\\frac{1}{0}", "1/0", "10^99999", "1e9999", "9" * 100, "5" * 1000),
    ],
)
def test_no_number_or_more_than_one(text):
    assert one_number(text) is None
