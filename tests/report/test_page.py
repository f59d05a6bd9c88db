"""The page of a report: whole, safe, and the same for every corpus."""

import re
from html.parser import HTMLParser

import pytest

from sp2dpo.diagnostics.agreement import ReaderComparison
from sp2dpo.diagnostics.biases import LengthBin
from sp2dpo.pairs.pair import Pair
from sp2dpo.pairs.sources import SetAside
from sp2dpo.panel.rubric import load_rubric, parse_rubric
from sp2dpo.report.charts import (
    CategoryCounts,
    Histogram,
    axis_steps,
    build_gauge,
    category_colours,
    histogram_chart,
    length_chart,
    stack_bars,
)
from sp2dpo.report.page import _templates, beta_decimals, comparison_matrix, render_page
from support.reports import VARIANTS, fill, make_report, pair, refused_reply, says, source_rows

HOSTILE = (
    "<script>alert(1)</script><img src=x onerror=alert(2)>\"'{{ 7123 * 7 }}</style></title></svg>"
)
VOID = {"meta"}


class Reader(HTMLParser):
    """All start tags with their attributes, all text, and whether every tag is closed."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.text, self.open = [], [], []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    @property
    def visible_text(self):
        return " ".join("".join(self.text).split())


def read(html):
    reader = Reader(html)
    assert reader.open == []
    return reader


def corpus(new_store, name, word, *, rubric="semantic-gap"):
    """A run that puts `word` wherever a source, a rubric or a teacher can put a text.

    Names in a rubric are of one line and printable: there its printable characters stand.
    """
    mapping = load_rubric(rubric).as_mapping()
    title = "".join(character for character in word if character.isprintable())
    rubric = parse_rubric(
        mapping | {"name": word, "categories": {title: word}, "variants": {title: word, "b": "b"}},
        where="test",
    )
    first_pair, second_pair = (
        Pair(
            prompt=({"role": "user", "content": f"{word} {number}"},),
            chosen=({"role": "assistant", "content": f"{word} chosen"},),
            rejected=({"role": "assistant", "content": f"{word} rejected"},),
        )
        for number in range(2)
    )
    rows = [*source_rows(first_pair, second_pair), SetAside(row=3, reason=word, raw=word)]
    rows[0] = type(rows[0])(row=1, pair=first_pair, source_id=word)
    store = new_store(name)
    against = {"category": title, "rationale": word} | ({"better": "B"} if rubric.blind else {})
    entries = [
        says(first_pair, word, title, 3, **against),
        says(first_pair, "y", title, 4, **against),
        says(second_pair, word, title, 8, **against),
        says(second_pair, "y", title, 9, **against),
        refused_reply(first_pair, "y", "b", word),
    ]
    fill(store, rows, entries, teachers=(word, "y"), rubric=rubric, name=word)
    return make_report(store)


@pytest.mark.parametrize("rubric", ["semantic-gap", "semantic-gap-blind"])
def test_hostile_text_changes_no_tag_of_the_page(new_store, rubric):
    tame = read(render_page(corpus(new_store, "tame.sqlite", "tame", rubric=rubric)))
    hostile = read(render_page(corpus(new_store, "hostile.sqlite", HOSTILE, rubric=rubric)))
    assert [tag for tag, _ in hostile.tags] == [tag for tag, _ in tame.tags]
    names = [sorted(attributes) for _, attributes in hostile.tags]
    assert names == [sorted(attributes) for _, attributes in tame.tags]
    assert not {"script", "img", "iframe", "link", "object"} & {tag for tag, _ in hostile.tags}
    assert not [name for attributes in names for name in attributes if name.startswith("on")]


def test_hostile_text_is_shown_as_it_is_wherever_tame_text_is(new_store):
    tame = read(render_page(corpus(new_store, "tame.sqlite", "tame")))
    hostile = read(render_page(corpus(new_store, "hostile.sqlite", HOSTILE)))
    # the one-line previews of the prompts are cut
    previews = sum(attributes.get("class") == "line" for _, attributes in tame.tags)
    assert previews == 4
    count = tame.visible_text.count("tame")
    assert count > 20
    assert hostile.visible_text.count(HOSTILE) >= count - previews
    assert "49861" not in hostile.visible_text


def test_hidden_and_reordering_characters_are_made_visible(new_store):
    page = render_page(corpus(new_store, "run.sqlite", "a\u202eb\u200bc\x1bd\x00e"))
    assert not re.search("[\u202e\u200b\x1b\x00]", page)
    assert "a\\u202eb\\u200bc\\u001bd\\u0000e" in read(page).visible_text


def test_the_page_fetches_nothing(new_store):
    page = render_page(corpus(new_store, "run.sqlite", "word"))
    tags = read(page).tags
    addresses = [attributes["href"] for _, attributes in tags if "href" in attributes]
    assert addresses == ["https://arxiv.org/abs/2601.22385"]
    assert not [tag for tag, attributes in tags if "src" in attributes]
    assert "url(" not in page
    assert "@import" not in page
    policy = next(a["content"] for _, a in tags if a.get("http-equiv"))
    assert "default-src 'none'" in policy


def test_every_reference_between_elements_is_met_and_every_id_is_unique(new_store):
    tags = read(render_page(corpus(new_store, "run.sqlite", "word"))).tags
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    labels = [a["aria-labelledby"].split() for _, a in tags if "aria-labelledby" in a]
    assert labels
    assert {reference for references in labels for reference in references} <= set(ids)


def test_tables_say_what_their_heads_head_and_pictures_have_a_name(new_store):
    tags = read(render_page(corpus(new_store, "run.sqlite", "word"))).tags
    heads = [attributes for tag, attributes in tags if tag == "th"]
    assert heads
    assert all(attributes.get("scope") in ("row", "col") for attributes in heads)
    pictures = [attributes for tag, attributes in tags if tag == "svg"]
    assert pictures
    for attributes in pictures:
        named = attributes.get("role") == "img" and attributes.get("aria-labelledby")
        assert named or attributes.get("aria-hidden") == "true"


def test_three_categories_in_another_language(new_store):
    mapping = load_rubric("semantic-gap").as_mapping()
    names = {"безопасность": "вред", "стиль": "вкус", "ничего": "нет разницы"}
    rubric = parse_rubric(mapping | {"categories": names}, where="test")
    only_pair = pair(0)
    store = new_store()
    entries = [says(only_pair, "x", "direct", 5, category="стиль", rationale="потому что")]
    fill(store, source_rows(only_pair), entries, teachers=("x",), rubric=rubric)
    reader = read(render_page(make_report(store)))
    order = [
        reader.visible_text.index(f"{name} {count}")
        for name, count in zip(names, "010", strict=True)
    ]
    assert order == sorted(order)
    assert "потому что" in reader.visible_text
    swatches = [a["class"] for _, a in reader.tags if a.get("class", "").startswith("swatch c")]
    assert set(swatches) == {"swatch c0", "swatch c1", "swatch c2"}
    for absent in ("factuality", "completeness", "clarity"):
        assert absent not in reader.visible_text


def test_a_page_with_nothing_to_show_says_so(new_store):
    only_pair = pair(0)
    store = new_store()
    fill(store, source_rows(only_pair), [says(only_pair, "x", "direct", 5)], teachers=("x",))
    reader = read(render_page(make_report(store, quorum=2)))
    assert "No pair has a beta, so there is nothing to draw." in reader.visible_text
    assert "There is only one, so there is nothing to compare." in reader.visible_text
    assert "None: every row of the source contains a valid pair." in reader.visible_text
    assert reader.visible_text.count("None: no pair has a beta.") == 2
    assert reader.visible_text.count("cannot be told") == 11
    assert "11 have no verdict." in reader.visible_text
    assert "nan" not in reader.visible_text.lower().split()
    assert not re.search(r"\bNone\b(?!:)", reader.visible_text)


def test_a_pair_without_any_reply_is_counted_beside_the_histogram(new_store):
    answered_pair, silent = pair(0), pair(1)
    store = new_store()
    entries = [says(answered_pair, "x", "direct", 5), refused_reply(silent, "x", "direct", "empty")]
    fill(store, source_rows(answered_pair, silent), entries, teachers=("x",))
    reader = read(render_page(make_report(store)))
    assert "without a beta 1" in reader.visible_text
    assert "1 of them has no kept reply" in reader.visible_text


def test_every_beta_is_drawn_once_in_either_picture(new_store):
    pairs = [pair(number) for number in range(11)]
    store = new_store()
    entries = [says(pair, "x", "direct", number) for number, pair in enumerate(pairs)]
    fill(store, source_rows(*pairs), entries, teachers=("x",))
    html = render_page(make_report(store))
    counts = re.findall(r"<title>style: (\d+) pairs? from", html)
    assert sum(map(int, counts)) == 2 * 11


def test_bars_are_stacked_from_the_axis_in_the_order_of_the_categories():
    categories = [CategoryCounts(name="a", counts=[1, 0]), CategoryCounts(name="b", counts=[3, 2])]
    histogram = Histogram(edges=[0.0, 0.5, 1.0], categories=categories)
    drawn = histogram_chart(histogram, width=358, height=258, intervals=2)
    # the axis is 358 - 14 - 44 = 300 long and 258 - 46 - 12 = 200 high, for up to 4 pairs
    assert (drawn.bottom, drawn.up) == (212, [0, 1, 2, 3, 4])
    assert [(bar.name, *drawn.box(bar)) for bar in stack_bars(histogram)] == [
        ("a", 45, 162, 148, 50),
        ("b", 45, 12, 148, 150),
        ("b", 195, 112, 148, 100),
    ]
    ticks = [(drawn.x(value), value) for value in drawn.across]
    assert ticks == [(44, 0), (194, 0.5), (344, 1)]


def test_the_axis_makes_room_for_large_counts():
    categories = [CategoryCounts(name="a", counts=[123_456])]
    histogram = Histogram(edges=[0.0, 1.0], categories=categories)
    drawn = histogram_chart(histogram, width=350, height=260, intervals=2)
    assert drawn.up[-1] == 150_000
    assert drawn.left == 16 + 8 * len("150,000")


def length_bin(middle, mean, lower, upper):
    return LengthBin(
        low=middle, high=middle, middle=middle, pairs=1, mean=mean, lower=lower, upper=upper
    )


def test_lengths_are_placed_between_the_shortest_and_the_longest_difference():
    bins = [length_bin(-150.0, 0.5, 0.2, 0.8), length_bin(250.0, 1.0, 0.9, 1.2)]
    drawn = length_chart(bins, width=472, height=258)
    # the axis is 472 - 20 - 52 = 400 long, for 400 characters, and 200 high, for gaps from 0 to 1
    assert [(drawn.x(value), value) for value in drawn.across] == [
        (102, -100), (202, 0), (302, 100), (402, 200),
    ]  # fmt: skip
    assert drawn.up == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])
    assert [drawn.y(value) for value in (0.0, 0.5, 1.0)] == [212, 112, 12]
    assert drawn.y(1.2) == drawn.y(1.0)  # an interval does not leave the chart


def test_an_axis_of_gaps_reaches_below_zero_only_if_an_interval_does():
    drawn = length_chart([length_bin(7.0, 0.1, -0.1, 0.3)], width=472, height=258)
    assert drawn.up == pytest.approx([-1, -0.6, -0.2, 0.2, 0.6, 1])
    # a single bin is at the left end, and its tick is there
    assert [(drawn.x(value), value) for value in drawn.across] == [(52, 7)]
    assert length_chart([], width=472, height=258) is None


@pytest.mark.parametrize(
    ("highest", "marks"),
    [
        (0, [0, 1]),
        (1, [0, 1]),
        (5, [0, 1, 2, 3, 4, 5]),
        (7, [0, 2, 4, 6, 8]),
        (26, [0, 10, 20, 30]),
        (240, [0, 50, 100, 150, 200, 250]),
    ],
)
def test_the_axis_has_round_steps(highest, marks):
    assert axis_steps(highest) == marks


@pytest.mark.parametrize(("width", "expected"), [(0.27, 3), (1.0, 2), (40, 2), (0.0009, 6)])
def test_betas_are_rounded_to_a_hundredth_of_their_envelope(width, expected):
    assert beta_decimals(width) == expected


def test_betas_of_a_narrow_envelope_can_be_told_apart(new_store):
    first_pair, second_pair = pair(0), pair(1)
    store = new_store()
    entries = [says(first_pair, "x", "direct", 2), says(second_pair, "x", "direct", 7)]
    fill(store, source_rows(first_pair, second_pair), entries, teachers=("x",))
    visible_text = read(
        render_page(make_report(store, beta_min=0.001, beta_max=0.002))
    ).visible_text
    assert "0.00120 – 0.00170" in visible_text


def test_no_two_of_forty_categories_share_a_colour():
    light, dark = zip(*(category_colours(number) for number in range(40)), strict=True)
    assert len(set(light)) == len(set(dark)) == 40
    assert all(re.fullmatch("#[0-9a-f]{6}", colour) for colour in light + dark)


@pytest.mark.parametrize(("value", "at"), [(0.25, 50.0), (-0.4, 0.0), (0.7, 100.0), (None, None)])
def test_a_gauge_keeps_its_needle_on_the_scale(value, at):
    high = build_gauge(value, top=0.5, look=0.1, bad=0.3)
    assert high.at == at
    assert [zone for zone, _, _ in high.zones] == ["ok", "look", "bad"]
    low = build_gauge(value, top=0.5, look=0.3, bad=0.1)
    assert [zone for zone, _, _ in low.zones] == ["bad", "look", "ok"]
    for drawn in (high, low):
        assert sum(width for _, _, width in drawn.zones) == pytest.approx(100)


def test_a_matrix_is_the_same_from_both_sides():
    comparison = ReaderComparison(
        one="a", other="b", pairs=3, same_category=1.0, spearman=None, difference=0.1
    )
    assert comparison_matrix(["a", "b"], [comparison]) == [[None, comparison], [comparison, None]]


def test_all_variants_and_teachers_head_a_matrix(new_store):
    only_pair = pair(0)
    store = new_store()
    entries = [says(only_pair, teacher, variant, 5) for teacher in "xyz" for variant in VARIANTS]
    fill(store, source_rows(only_pair), entries, teachers=("x", "y", "z"))
    html = render_page(make_report(store))
    for name in (*VARIANTS, "x", "y", "z"):
        assert f'<th scope="col">{name}</th>' in html


def test_only_a_blind_page_speaks_of_places_and_disputes(new_store):
    blind = read(
        render_page(corpus(new_store, "blind.sqlite", "word", rubric="semantic-gap-blind"))
    )
    labelled = read(render_page(corpus(new_store, "labelled.sqlite", "word")))
    for phrase in (
        "2 labels disputed (100%)",
        "Consistency over both orders",
        "Most disputed labels",
    ):
        assert phrase in blind.visible_text
        assert phrase not in labelled.visible_text
    assert "protocolblind" in blind.visible_text
    assert "protocollabelled" in labelled.visible_text


def test_a_share_of_places_stands_beside_its_interval(new_store):
    only_pair = pair(0)
    store = new_store()
    entries = [
        says(only_pair, "x", "direct", 5, better="A"),
        says(only_pair, "x", "direct", 5, better="A", order="rejected-first"),
        says(only_pair, "silent", "direct", 5, better="A"),
    ]
    rubric = load_rubric("semantic-gap-blind")
    fill(store, source_rows(only_pair), entries, teachers=("x", "silent"), rubric=rubric)
    html = render_page(make_report(store))
    body = html.split('id="position"', 1)[1].split("<tbody>", 1)[1].split("</tbody>", 1)[0]
    rows = [re.sub("<[^>]*>", " ", row).split() for row in body.split("</tr>")]
    # Wilson, 1 of 1: from 1 / (1 + 3.8415); 0 of 1: up to 3.8415 / (1 + 3.8415)
    none, all_of_it = "0% 0% – 79%", "100% 21% – 100%"
    assert rows[0] == ["silent", "0", "–", "–", "–", "–"]
    assert rows[1] == f"x 1 {none} {all_of_it} {none} {none}".split()
    assert "None: no label is disputed." in html


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("lower `quorum: 2`.", "lower <code>quorum: 2</code>."),
        ("plain <b>x</b> & y", "plain &lt;b&gt;x&lt;/b&gt; &amp; y"),
        ("`<script>` and `a` b `", "<code>&lt;script&gt;</code> and <code>a</code> b `"),
    ],
)
def test_backticks_of_an_advice_become_code_and_nothing_else_becomes_markup(text, html):
    assert _templates(2).from_string("{{ text | code }}").render(text=text) == html
