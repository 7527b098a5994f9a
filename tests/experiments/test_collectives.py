"""What gradients send between devices, in little; in a process of its own, which makes itself four devices."""

import json

from tests.experiments.program import complains, ended, is_picture, launched, started, table

LITTLE = "--steps 6 --batch 4 --size 8 --inputs 4 --ways data".split()


def test_examples_spread_and_going_on(tmp_path):
    folder = tmp_path / "run"
    arguments = [*LITTLE, "--contenders", "lax.scan", "sharded", "--run", folder]
    code, out, err = ended(started("collectives", *arguments, "--show"))
    assert code == 0, err
    plain, ours = rows = table(folder / "table.csv")
    weights = int(ours["weights"])
    assert (plain["scan"], int(plain["collectives"]), int(plain["all_reduces"])) == ("lax.scan", 6, 6)
    assert (ours["scan"], int(ours["collectives"]), int(ours["bytes"])) == ("sharded", 1, weights)
    assert all(float(row["difference"]) < 1e-5 for row in rows)
    assert out.count("all-reduce") == 2 and "in all" in out
    assert len(json.loads((folder / "results.json").read_text())) == 2 and is_picture(folder / "collectives.png")


def test_what_cannot_be_is_one_sentence(tmp_path):
    complains(launched("collectives", "--run", tmp_path / "a"), "four devices are needed, and there are 1")
    assert not (tmp_path / "a").exists()
