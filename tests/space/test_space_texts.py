"""Word diffs and Markdown of the inspector: what they say adds up to what was written."""

import random

import pytest

from support.browser import bare

WORDS = ["a", "the", "word", "two  spaces", ".", "3.14", "<b>", "`x`", "é", "\n", "日本", "--"]


@pytest.fixture(scope="module")
def page(browser):
    with bare(browser, "lib/diff", "lib/text") as page:
        yield page


def random_text(rng, most):
    return " ".join(rng.choices(WORDS, k=rng.randint(0, most)))


def changed(rng, text):
    """The text with some of its words lost, doubled or replaced."""
    words = text.split(" ")
    for _ in range(rng.randint(0, 4)):
        at = rng.randrange(len(words))
        words[at : at + 1] = rng.choice([[], [words[at]] * 2, [rng.choice(WORDS)]])
        words = words or [""]
    return " ".join(words)


def test_both_texts_can_be_read_off_a_diff(page):
    rng = random.Random(0)
    twos = [("", ""), ("", "a b"), ("a b", ""), ("same words", "same words")]
    for _ in range(300):
        first = random_text(rng, 40)
        twos.append((first, changed(rng, first) if rng.random() < 0.7 else random_text(rng, 40)))
    diffs = page.evaluate("(twos) => twos.map(([one, other]) => diff.compared(one, other))", twos)
    for (first, second), runs in zip(twos, diffs, strict=True):
        assert "".join(text for which, text in runs if which != "second") == first
        assert "".join(text for which, text in runs if which != "first") == second


def test_a_diff_is_as_short_as_it_can_be(page):
    runs = page.evaluate("diff.compared('The quick brown fox jumps', 'The slow brown fox sleeps')")
    assert runs == [
        ["both", "The "], ["first", "quick"], ["second", "slow"], ["both", " brown fox "],
        ["first", "jumps"], ["second", "sleeps"],
    ]  # fmt: skip


def test_two_long_texts_without_a_word_in_common_are_told_apart_in_time(page):
    took, runs = page.evaluate(
        """() => {
          const long = (word) => Array.from({length: 20000}, (_, at) => `${word}${at}`).join(" ");
          const began = performance.now(), runs = diff.compared(long("a"), long("b"));
          return [performance.now() - began, runs.length];
        }"""
    )
    assert took < 10_000
    assert runs > 0


def test_markdown_becomes_plain_elements(page):
    markdown = (
        "# Title *here*\n\nA **bold** word, `code <b>`, 2*3*4 and snake_case_name\nsecond line\n\n"
        "- one\n  - deeper\n- two\n\n3. three\n4. four\n\n```js\nlet x = 1 < 2;\n\n# no heading\n"
        "```\nafter\n\n~~~\nnever closed"
    )
    html = page.evaluate(
        """(said) => { const box = document.createElement("div");
             box.append(text.readable(said)); return box.innerHTML; }""",
        markdown,
    )
    assert '<p class="heading">Title <em>here</em></p>' in html
    assert (
        "<p>A <strong>bold</strong> word, <code>code &lt;b&gt;</code>, 2*3*4 and snake_case_name"
        "<br>second line</p>"
    ) in html
    assert html.count("<li") == 5
    assert '<ol start="3">' in html
    code = '<pre tabindex="0"><code>let x = 1 &lt; 2;\n\n# no heading</code></pre><p>after</p>'
    assert code in html
    assert html.endswith("<code>never closed</code></pre>")


def test_every_word_of_a_text_is_shown(page):
    rng = random.Random(1)
    parts = [
        *WORDS,
        "**",
        "*",
        "```",
        "# ",
        "- ",
        "1. ",
        "\n\n",
        "![x](http://y)",
        "_",
        "~~~",
        "\r",
    ]
    texts = ["".join(rng.choices(parts, k=30)) for _ in range(300)]
    shown = page.evaluate(
        """(texts) => texts.map((said) => { const box = document.createElement("div");
             box.append(text.readable(said)); return box.textContent; })""",
        texts,
    )
    for text, displayed in zip(texts, shown, strict=True):
        # What stands behind a fence is the name of a language, and not shown.
        fences = [line for line in text.split("\n") if line.strip().startswith(("```", "~~~"))]
        for word in ("word", "日本", "3.14", "<b>", "http://y"):
            hidden = sum(line.count(word) for line in fences)
            assert text.count(word) - hidden <= displayed.count(word) <= text.count(word), text


HARD = {
    "list items": "- a\n" * 30_000,
    "nested lists": "  - a\n    1. b\n" * 8_000,
    "fences": "```\n" * 30_000,
    "spaces": " " * 100_000,
    "line breaks": "\n" * 100_000 + "x",
    "accents": "a" + "\u0301" * 100_000,
    "backticks of every length": "".join("`" * n + "x" for n in range(1, 440)),
    "bold without an end": "**a " * 30_000,
    "one word": "a" * 100_000,
    "directions": "a\u202eb\u202c" * 25_000,
}


@pytest.mark.parametrize("kind", HARD)
def test_a_long_text_appears_in_parts_of_bounded_size(page, kind):
    """Nothing is lost: the parts together have every letter."""
    tags, letters = page.evaluate(
        """(source) => {
          const box = document.createElement("div"), tags = [];
          box.append(text.readable(source));
          for (let last = 0, turns = 0; turns < 100; turns += 1) {
            const now = box.getElementsByTagName("*").length;
            tags.push(now - last);
            last = now;
            const more = box.querySelector("button.more");
            if (!more) break;
            more.click();
          }
          return [Math.max(...tags), box.textContent.replace(/[^ab]/g, "").length];
        }""",
        HARD[kind],
    )
    assert tags <= 5000
    if kind != "accents":  # their number is shown in words
        assert letters == sum(HARD[kind].count(letter) for letter in "ab")


def test_an_edited_schedule_in_the_address_is_checked(browser):
    valid = ["{}", '{"betaMin": 0.1}', '{"envelopes": {"a": {"betaMin": 0.1, "betaMax": 0.2}}}']
    invalid = [
        "", "null", "5", "[]", "{", '"a"', '{"envelopes": null}', '{"envelopes": []}',
        '{"envelopes": {"a": null}}', '{"betaMin": "x"}', '{"betaMin": 1e999}', '{"map": null}',
        '{"__proto__": 1}', '{"toString": 1}', '{"gap": "x"}', '{"overTeachers": 1}', "[" * 30_000,
    ]  # fmt: skip
    with bare(browser, "lib/schedule") as page:
        results = page.evaluate(
            "(all) => all.map((one) => schedule.parseChanges(one) !== null)", [*valid, *invalid]
        )
    assert results == [True] * len(valid) + [False] * len(invalid)
