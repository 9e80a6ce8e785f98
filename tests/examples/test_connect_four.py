"""Connect Four: games and labels against a second, slow way; claims that can fail; the example in a small size."""

from copy import deepcopy
from functools import partial

import numpy as np
import pytest
import torch

from examples import connect_four
from examples._connect_four_games import Matches, attack, defend, neutral, play
from rnn_callbacks.report import Report, SavedReport

WAYS = ((0, 1), (1, 0), (1, 1), (1, -1))


def four(pieces, column, row):
    """Whether the piece in that place (a dict of places) lies in a line of four of its player, step by step."""
    for right, up in WAYS:
        line = 1
        for sign in (1, -1):
            x, y = column + sign * right, row + sign * up
            while pieces.get((x, y)) == pieces[column, row]:
                line, x, y = line + 1, x + sign * right, y + sign * up
        if line >= 4:
            return True
    return False


def wins(columns, player):
    """Columns in which a piece of that player would make four; ``columns`` are lists of pieces from the floor."""
    found = []
    for column in range(7):
        row = len(columns[column])
        pieces = {(x, y): who for x, pile in enumerate(columns) for y, who in enumerate(pile)} | {(column, row): player}
        if row < 6 and four(pieces, column, row):
            found.append(column)
    return found


def threes(columns, player):
    """Lines of four places with three pieces of that player and none of the other."""
    place = {(x, y): who for x, pile in enumerate(columns) for y, who in enumerate(pile)}
    count = 0
    for x in range(7):
        for y in range(6):
            for right, up in WAYS:
                line = [(x + k * right, y + k * up) for k in range(4)]
                if all(0 <= a < 7 and 0 <= b < 6 for a, b in line):
                    who = [place.get(spot, 0) for spot in line]
                    count += who.count(player) == 3 and who.count(0) == 1
    return count


def replay(moves):
    """The labels of a game, move by move, and who won."""
    columns, rows, winner = [[] for _ in range(7)], [], 0
    for ply, move in enumerate(moves):
        player = (1, -1)[ply % 2]
        assert winner == 0, "nobody plays on after four"
        assert len(columns[move]) < 6
        mine, other = wins(columns, player), wins(columns, -player)
        winner = player if move in mine else 0
        rows.append(
            {
                "current_player": ply % 2,
                "game_phase": 0 if ply < 12 else 1 if ply < 26 else 2,
                "immediate_win_current": int(bool(mine)),
                "immediate_win_opponent": int(bool(other)),
                "three_in_row_current": min(threes(columns, player), 2),
                "three_in_row_opponent": min(threes(columns, -player), 2),
                "center_control_current": min(columns[3].count(player), 3),
                "ends": int(winner != 0 or ply == 41),
            }
        )
        columns[move].append(player)
    assert winner != 0 or len(moves) == 42
    return rows, winner


@pytest.mark.parametrize("careless", [0.0, 0.1, 1.0])
def test_games_and_labels_are_those_of_a_second_slow_way(careless):
    games = play(7, 3, careless=careless)
    labels = games.labels()
    for game, length in enumerate(games.lengths):
        rows, winner = replay(games.moves[game, :length].tolist())
        assert games.winners[game] == winner
        assert set(rows[0]) == set(labels)
        for name, values in labels.items():
            assert values[game, :length].tolist() == [row[name] for row in rows], name
            assert (values[game, length:] == -1).all()


def test_attentive_players_win_where_they_can_and_block_where_they_must():
    games = play(11, 0, careless=0.0)
    for moves, length in zip(games.moves, games.lengths, strict=True):
        columns = [[] for _ in range(7)]
        for ply, move in enumerate(moves[:length].tolist()):
            player = (1, -1)[ply % 2]
            must = wins(columns, player) or wins(columns, -player)
            assert not must or move in must
            columns[move].append(player)


def test_the_network_sees_each_position_from_the_side_of_the_player_to_move():
    games = play(5, 1)
    planes, length = games.planes()[0], games.lengths[0]
    columns = [[] for _ in range(7)]
    for ply, move in enumerate(games.moves[0, :length].tolist()):
        expected = np.zeros((3, 6, 7))
        for column, pile in enumerate(columns):
            for row, who in enumerate(pile):
                expected[0 if who == (1, -1)[ply % 2] else 1, row, column] = 1
            if len(pile) < 6:
                expected[2, len(pile), column] = 1
        assert np.array_equal(planes[ply], expected)
        columns[move].append((1, -1)[ply % 2])


def test_the_contexts_share_out_all_positions():
    data = Matches(games=60)
    data.setup("fit")
    batch = next(iter(data.val_dataloader()))
    chosen = [context(batch) for context in (attack, defend, neutral)]
    assert sum(len(positions["boards"]) for positions in chosen) == batch["lengths"].sum() == (batch["ends"] >= 0).sum()
    assert all(len(positions["boards"]) > 0 for positions in chosen)
    played = batch["boards"][(batch["immediate_win_current"] == 1)]
    assert torch.equal(chosen[0]["boards"][:, 0], played)


# ---- claims ------------------------------------------------------------------------------------------------------


def probed(emergence=0.5, **rises):
    """A look at which these concepts, and no others, are read better than from the untrained network."""
    scalars = {}
    for concept in connect_four.CONCEPTS:
        place = f"probes/reader.l0/hidden/{concept}"
        rise = rises.get(concept, 0.0)
        scalars |= {f"{place}/balanced_accuracy": 0.7 + rise, f"{place}/over_untrained": rise}
        scalars |= {f"{place}/over_input": 0.01, f"{place}/over_shuffled": 0.2 + rise, f"{place}/v_information": 0.1}
        scalars[f"probes/concepts/{concept}/emergence_epoch"] = emergence if rise > 0 else -1.0
        scalars[f"probes/concepts/{concept}/emergence_gain"] = rise
    return [SavedReport(Report(scalars), 5, 0)]


def test_that_only_the_threat_emerges_fails_where_more_does_or_nothing_was_learned():
    assert connect_four.stayed(probed(), 0.2).holds
    assert connect_four.stayed(probed(immediate_win_opponent=0.05), 0.2).holds
    assert not connect_four.stayed(probed(game_phase=0.02), 0.2).holds
    assert not connect_four.stayed(probed(immediate_win_current=0.02), 0.2).holds  # it emerged, in bits
    assert not connect_four.stayed(probed(immediate_win_current=0.04, emergence=-1.0), 0.2).holds
    assert not connect_four.stayed(probed(), 0.15).holds


def test_that_a_win_emerges_fails_where_it_does_not():
    assert connect_four.emerged(probed(immediate_win_current=0.2)).holds
    assert not connect_four.emerged(probed(immediate_win_current=0.05)).holds
    assert not connect_four.emerged(probed(immediate_win_current=0.2, emergence=-1.0)).holds


@pytest.mark.parametrize("counts, holds", [((1, 1, 1), True), ((1, 2, 1), False), ((1, 1, 0), False)])
def test_that_there_is_one_attractor_fails_where_there_are_others_or_none(counts, holds):
    scalars = {}
    for context, count in zip(connect_four.CONTEXTS, counts, strict=True):
        scalars[f"fixed_points/reader/{context}/attractors"] = float(count)
        scalars[f"fixed_points/reader/{context}/end_distance"] = 1.5
    assert connect_four.rests([SavedReport(Report(scalars), 5, 0)], "moves").holds is holds


def test_concepts_are_told_in_the_order_in_which_they_emerged():
    rows = connect_four.table(probed(game_phase=0.1, immediate_win_current=0.3))[2:]
    assert [row.split()[0] for row in rows[:2]] == ["immediate_win_current", "game_phase"]
    assert rows[0].split()[1:5] == ["1.00", "0.70", "0.99", "0.50"]
    assert rows[1].endswith("epoch 0.5, by +0.10")
    assert all(row.endswith("never") for row in rows[2:])


# ---- as a user runs it ---------------------------------------------------------------------------------------------


def test_a_network_that_has_hardly_learned_fails(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(connect_four, "Matches", partial(Matches, games=150))
    watchers = connect_four.watchers(99)  # pictures are drawn at the last epoch, which takes a test too long
    monkeypatch.setattr(connect_four, "watchers", lambda epochs: deepcopy(watchers))
    assert connect_four.main(["--targets", "moves+end", "--epochs", "1", "--logs", str(tmp_path)]) == 1
    said = capsys.readouterr().out
    assert said.count("balanced accuracy of") == 1
    assert said.count("The phase of the game explains") == 1
    assert "FAILS" in said
    assert f"tensorboard --logdir {tmp_path / 'connect_four'}" in said
    assert {path.name for path in (tmp_path / "connect_four").iterdir()} == {"moves+end"}
