"""Sound submissions of every form, broken at random: each break is an error; what only looks different is none."""

import csv
import io
import random

import pytest
from reliability import count
from test_submission import FORMS, make, random_predictions

from kfold.submission import format_submission
from kfold.submission_check import check_submission

IDS = ["007", "a", "b,c", 'd"e', "e_5", "f-6", "\u00e97", "h 8", "0.5", "1e3"]
PROBABLE = ("probabilities", "class probabilities")
WRONG = {  # content of a cell -> what may not stand there
    "label": ["cow", "Cat", "cat ", " cat", "", " ", "0", "nan", "cat|dog", "0.5", "None", "c\u0430t", "cat\u200b"],
    "ranking": ["cow", "cat cat", "cat,dog", "", "CAT", "cat  dog", " cat", "cat dog owl cat", "1 2", "cat|dog"],
    "label list": ["cow", "cat|cat", "cat,dog", "", "cat|", "|cat", "cat||dog", "Cat", "cat | dog", "1|0", "[cat]"],
    "flags": ["2", "-1", "0.5", "True", "", "yes", "nan", "0 ", "\u0661", "inf", "1e-3", "0_1", "01x"],
    "probabilities": ["1.0001", "-0.1", "nan", "NaN", "inf", "-inf", "", "yes", "0,5", "50%", "1_0", "\uff10", " 0.5"],
    "class probabilities": ["1.1", "-0.1", "nan", "inf", "", "cat", "0,5", "0.5 ", "--0", "0x1", "\u0661", "1e999"],
    "values": ["nan", "inf", "-Infinity", "", "12 cm", "1,5", "1e999", "1_000", "None", "\uff11", "#DIV/0!", "=1+1"],
    "grades": ["2.5", "-1", "9", "", "nan", "two", "1e2", "2 ", "\u0662", "1,0", "NA"],
}  # fmt: skip


def write(table, lineterminator="\n", quoting=csv.QUOTE_MINIMAL):
    """The bytes of a table of text."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator=lineterminator, quoting=quoting)
    writer.writerows([list(table.columns), *table.to_numpy(object).tolist()])
    return text.getvalue().encode()


# Breaks: table, form, generator -> table or bytes that the competition would refuse or misread


def wrong_cell(table, form, generator):
    table = table.copy()
    cell = generator.choice(WRONG[form.content])
    table.loc[generator.randrange(len(table)), generator.choice(form.value_columns)] = cell
    return table


def wrong_column(table, form, generator):
    column = generator.choice(form.value_columns)
    return table.assign(**{column: generator.choice(WRONG[form.content])})


def sum_off(table, form, generator):
    if form.content != "class probabilities":
        return wrong_cell(table, form, generator)
    table, row, column = table.copy(), generator.randrange(len(table)), generator.choice(form.value_columns)
    cell = float(table.loc[row, column])
    table.loc[row, column] = str(cell + 0.01 if cell < 0.9 else cell - 0.01)
    return table


def lose_rows(table, form, generator):
    return table.drop(index=generator.sample(range(len(table)), generator.randint(1, len(table)))).reset_index(
        drop=True
    )


def repeat_rows(table, form, generator):
    again = table.iloc[[generator.randrange(len(table)) for _ in range(generator.randint(1, 3))]]
    return type(table)(table.to_numpy(object).tolist() + again.to_numpy(object).tolist(), columns=table.columns)


def foreign_row(table, form, generator):
    rows = table.to_numpy(object).tolist()
    row = list(generator.choice(rows))
    row[list(table.columns).index(form.id_column)] = generator.choice(["zzz", "", "0", "nan", "A", "total"])
    rows.insert(generator.randrange(len(rows) + 1), row)
    return type(table)(rows, columns=table.columns)


def wrong_id(table, form, generator):
    table, row = table.copy(), generator.randrange(len(table))
    old = table.loc[row, form.id_column]
    new = [
        old + " ",
        " " + old,
        old + ".png",
        old + "\u200b",
        "",
        "0" + old,
        "nan",
        old + "\n",
        table[form.id_column].iloc[row - 1],
    ]
    table.loc[row, form.id_column] = generator.choice(new)
    return table  # fmt: skip


def ids_as_numbers(table, form, generator):
    names = {"007": "7", "1e3": "1000", "0.5": ".5"}
    return table.assign(**{form.id_column: table[form.id_column].replace(names)})


def lose_column(table, form, generator):
    return table.drop(columns=generator.choice(list(table.columns)))


def add_column(table, form, generator):
    table = table.copy()
    name = generator.choice(["index", "Unnamed: 0", "", "fold", "Usage"])
    table.insert(generator.randrange(table.shape[1] + 1), name, [str(row) for row in range(len(table))])
    return table


def rename_column(table, form, generator):
    old = generator.choice(list(table.columns))
    return table.rename(columns={old: generator.choice([old.upper(), old + " ", "x", "", f"p_{old}", "\ufeff" + old])})


def move_column(table, form, generator):
    columns = list(table.columns)
    return table[columns[1:] + columns[:1]]


def no_header(table, form, generator):
    return write(table).split(b"\n", 1)[1]


def header_twice(table, form, generator):
    content = write(table)
    return content.split(b"\n", 1)[0] + b"\n" + content


def header_only(table, form, generator):
    return write(table).split(b"\n", 1)[0] + b"\n"


def other_delimiter(table, form, generator):
    return write(table).replace(b",", generator.choice([b";", b"\t", b"|", b", "]))


def other_encoding(table, form, generator):
    text = write(table).decode()
    return text.encode(generator.choice(["utf-16", "utf-16-le", "latin-1", "utf-8-sig", "utf-32"]))


def cut_off(table, form, generator):
    content = write(table).rstrip(b"\n")
    return content[: generator.randrange(content.rindex(b"\n"))]  # at least one whole row is lost


def odd_bytes(table, form, generator):
    content = write(table)
    place = generator.randrange(len(content))
    return content[:place] + generator.choice([b"\0", b"\xff", b"\xc3\x28", b"\x80"]) + content[place:]


def stray_cell(table, form, generator):
    lines = write(table).split(b"\n")
    row = generator.randrange(1, len(table) + 1)
    lines[row] = generator.choice([lines[row] + b",", b"," + lines[row], lines[row].split(b",")[-1], b'"' + lines[row]])
    return b"\n".join(lines)


def nothing_in_it(table, form, generator):
    return generator.choice(
        [b"", b"\n", b" \n\n", b"\xef\xbb\xbf", b'""\n', b"null\n", b"[]", b"<html></html>\n", b"PK\x03\x04\0"]
    )


BREAKS = [
    *[wrong_cell, wrong_cell, wrong_cell, wrong_column, sum_off, lose_rows, repeat_rows, foreign_row, wrong_id],
    *[ids_as_numbers, lose_column, add_column, rename_column, move_column, no_header, header_twice, header_only],
    *[other_delimiter, other_encoding, cut_off, odd_bytes, stray_cell, nothing_in_it],
]  # fmt: skip


# Variations: what the competition reads just as well


def other_order(table, form, generator):
    return write(table.sample(frac=1, random_state=generator.randrange(1000)))


def all_quoted(table, form, generator):
    return write(table, quoting=csv.QUOTE_ALL)


def windows_lines(table, form, generator):
    return write(table, lineterminator="\r\n")


def no_last_line_end(table, form, generator):
    return write(table).rstrip(b"\n")


def blank_last_lines(table, form, generator):
    return write(table) + b"\n\n"


def other_numbers(table, form, generator):
    """The same numbers with more digits, an exponent, a plus, or without the zero."""
    if form.content not in (*PROBABLE, "values", "grades"):
        return other_order(table, form, generator)
    styles = ["{:.9f}", "{:.6e}", "{:+.8f}", "{:.17g}", "{:E}"]
    table = table.copy()
    for column in form.value_columns:
        table[column] = [generator.choice(styles).format(float(cell)) for cell in table[column]]
        if form.content == "grades":
            table[column] = [f"{float(cell):.1f}" for cell in table[column]]
    return write(table)


def other_values(table, form, generator):
    targets = make(next(kind for kind in FORMS if make(kind, IDS)[0] == form), IDS)[1]
    return write(format_submission(random_predictions(form, targets, IDS, generator.randrange(10**6)), form, IDS))


VARIATIONS = [other_order, all_quoted, windows_lines, no_last_line_end, blank_last_lines, other_numbers, other_values]


def sound(kind, seed=0):
    form, targets, _ = make(kind, IDS)
    return form, format_submission(random_predictions(form, targets, IDS, seed), form, IDS)


def errors_of(submission, form, tmp_path):
    if not isinstance(submission, bytes):
        submission = write(submission)
    path = tmp_path / "submission.csv"
    path.write_bytes(submission)
    return check_submission(path, form, IDS)[0]


def test_every_broken_submission_is_refused(tmp_path, figures):
    tries, kinds = count(253, 2530), list(FORMS)
    for number in range(tries):
        generator = random.Random(number)
        form, table = sound(kinds[number % len(kinds)], number)
        edit = BREAKS[number // len(kinds) % len(BREAKS)]
        broken = edit(table, form, generator)
        errors = errors_of(broken, form, tmp_path)
        assert errors, (number, edit.__name__, form.content, broken)
        assert all(line.isprintable() for line in errors), (number, errors)
    figures(f"{tries} of {tries} broken submissions of {len(kinds)} forms refused")


def test_every_sound_submission_passes_however_it_is_written(tmp_path, figures):
    tries, kinds = count(80, 400), list(FORMS)
    for number in range(tries):
        generator = random.Random(number)
        form, table = sound(kinds[number % len(kinds)], number)
        edit = VARIATIONS[number % len(VARIATIONS)]
        content = edit(table, form, generator)
        assert errors_of(content, form, tmp_path) == [], (number, edit.__name__, form.content, content)
    figures(f"{tries} sound submissions of {len(kinds)} forms: 0 false alarms")


@pytest.mark.parametrize("kind", FORMS)
def test_no_cell_of_the_wrong_kind_passes(kind, tmp_path):
    form, table = sound(kind)
    for cell in WRONG[form.content]:
        broken = table.copy()
        broken.loc[3, form.value_columns[0]] = cell
        assert errors_of(broken, form, tmp_path), cell
