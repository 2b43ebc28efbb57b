"""Tables of options in the docs are those of the declarations."""

from tools import option_tables


def test_the_docs_have_the_options_there_are(capsys):
    assert option_tables.main(["--check"]) == 0, capsys.readouterr().out
    sections = {
        match[2] for page in option_tables.pages() for match in option_tables.HEADING.finditer(page.read_text())
    }
    methods = {f"TRAINER.{key.split('.')[1]}" for key in option_tables.SCHEMA if key.startswith("TRAINER.")}
    assert methods - {"TRAINER.TINY"} <= sections
    assert {"INPUT", "OPTIM", "TRAIN"} <= sections


def test_a_stale_row_is_replaced():
    page = "## Options (`TRAINER.COOP`)\n\n| key | default |\n|---|---|\n| N_CTX | 99 |\n\nMore.\n"
    text = option_tables.rewritten(page)
    assert "| N_CTX | 16 | 1 or more | " in text
    assert "99" not in text
    assert text.endswith("|\n\nMore.\n")
