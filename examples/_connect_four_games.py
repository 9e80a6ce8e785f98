"""Games of Connect Four between careless players, and exact labels for every position in them.

A board is a row of 42 cells, ``row * 7 + column`` with row 0 at the bottom: 1 holds a piece of the first player, -1 one
of the second, 0 none. All labels are of the position before the move, from the side of the player who is to move.
"""

from __future__ import annotations

from dataclasses import dataclass

import lightning.pytorch as pl
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

ROWS, COLUMNS = 6, 7
CELLS = ROWS * COLUMNS
EARLY, LATE = 12, 26  # plies at which the middle game and the end game begin: 50, 41 and 9 % of positions
Labels = dict[str, NDArray[np.int64]]
Batch = dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class Games:
    """Games as they were played; after the end there are empty boards, moves of -1 and labels of -1."""

    boards: NDArray[np.int8]  # (G, 42, 42): before each move
    moves: NDArray[np.int64]  # (G, 42): columns
    lengths: NDArray[np.int64]  # (G,): moves in the game
    winners: NDArray[np.int64]  # (G,): 1, -1 or 0 for a draw

    def planes(self) -> NDArray[np.int8]:
        """The network's input, ``(G, 42, 3, 6, 7)``: pieces of the player to move, the other's, and playable cells."""
        mine = self.boards * (1 - 2 * (np.arange(CELLS) % 2))[:, None]
        free = playable(self.boards.reshape(-1, CELLS)).reshape(mine.shape)
        return np.stack([mine == 1, mine == -1, free], 2).astype(np.int8).reshape(-1, CELLS, 3, ROWS, COLUMNS)

    def labels(self) -> Labels:
        """Every concept of `concepts`, and ``ends`` (the game ends with the next move), each ``(G, 42)``."""
        step = np.arange(CELLS)
        played = step < self.lengths[:, None]
        found = concepts(self.boards.reshape(-1, CELLS), np.tile(step, len(self.boards)))
        found = {name: values.reshape(played.shape) for name, values in found.items()}
        found["ends"] = (step == self.lengths[:, None] - 1).astype(np.int64)
        return {name: np.where(played, values, -1) for name, values in found.items()}


def lines_of_four() -> NDArray[np.float32]:
    """Which cells each of the 69 lines consists of, ``(42, 69)`` of 0 and 1."""
    lines = []
    for row in range(ROWS):
        for column in range(COLUMNS):
            for up, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
                if row + 3 * up < ROWS and 0 <= column + 3 * right < COLUMNS:
                    lines.append([(row + k * up) * COLUMNS + column + k * right for k in range(4)])
    cells = np.zeros((CELLS, len(lines)), np.float32)
    for number, line in enumerate(lines):
        cells[line, number] = 1
    return cells


LINES = lines_of_four()


def threes(boards: NDArray[np.int8], player: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Lines with exactly three pieces of the player ``(N,)`` and one empty cell, ``(N, 69)``."""
    side = boards * player[:, None]
    # Three of the player's and one empty cell is the only way to a sum of 3.
    return np.asarray((side.astype(np.float32) @ LINES) == 3)


def playable(boards: NDArray[np.int8]) -> NDArray[np.bool_]:
    """Cells into which a piece may fall now, ``(N, 42)``: empty, with a full cell or the floor below."""
    empty = boards == 0
    below = np.zeros_like(empty)
    below[:, COLUMNS:] = empty[:, :-COLUMNS]
    return np.asarray(empty & ~below)


def winning_columns(boards: NDArray[np.int8], player: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Columns in which that player would complete four if he were to move, ``(N, 7)``."""
    completes = threes(boards, player).astype(np.float32) @ LINES.T > 0
    return np.asarray((completes & playable(boards)).reshape(-1, ROWS, COLUMNS).any(1))


def concepts(boards: NDArray[np.int8], plies: NDArray[np.int64]) -> Labels:
    """Labels ``(N,)`` of positions ``(N, 42)`` after so many plies ``(N,)``, from the side of the player to move.

    ``current_player`` (0: the first), ``game_phase`` (0, 1, 2), ``immediate_win_current`` and ``_opponent`` (four could
    be completed now), ``three_in_row_current`` and ``_opponent`` (lines with three pieces and an empty cell, playable
    or not: none, one, two or more) and ``center_control_current`` (own pieces in the middle column, up to 3).
    """
    player = 1 - 2 * (plies % 2)
    middle = (boards.reshape(-1, ROWS, COLUMNS)[:, :, COLUMNS // 2] == player[:, None]).sum(1)
    found = {
        "current_player": plies % 2,
        "game_phase": np.digitize(plies, [EARLY, LATE]),
        "center_control_current": middle.clip(max=3),
    }
    for side, who in (("current", player), ("opponent", -player)):
        found[f"immediate_win_{side}"] = winning_columns(boards, who).any(1).astype(np.int64)
        found[f"three_in_row_{side}"] = threes(boards, who).sum(1).clip(max=2)
    return found


def play(games: int, seed: int, *, careless: float = 0.1) -> Games:
    """Players meet who win where they can, else block where they must, else (or carelessly) play anywhere."""
    random = np.random.default_rng(seed)
    board = np.zeros((games, CELLS), np.int8)
    boards = np.zeros((games, CELLS, CELLS), np.int8)
    moves = np.full((games, CELLS), -1)
    winners, lengths = np.zeros(games, np.int64), np.full(games, CELLS)
    alive = np.arange(games)
    for ply in range(CELLS):
        now = board[alive]
        player = np.full(len(alive), 1 - 2 * (ply % 2))
        wins, blocks = winning_columns(now, player), winning_columns(now, -player)
        open_cells = playable(now)
        options = open_cells.reshape(-1, ROWS, COLUMNS).any(1)
        seen = random.random(len(alive)) >= careless
        for better in (blocks, wins):  # the later, the more urgent
            options = np.where((seen & better.any(1))[:, None], better, options)
        column = (random.random(options.shape) * options).argmax(1)
        cell = open_cells.reshape(-1, ROWS, COLUMNS)[np.arange(len(alive)), :, column].argmax(1) * COLUMNS + column
        boards[alive, ply], moves[alive, ply] = now, column
        board[alive, cell] = player
        won = wins[np.arange(len(alive)), column]
        winners[alive[won]], lengths[alive[won]] = player[won], ply + 1
        alive = alive[~won]
    return Games(boards, moves, lengths, winners)


class Rows(Dataset[Batch]):
    """Some rows of a table of tensors."""

    def __init__(self, table: Batch, rows: range) -> None:
        self.table, self.rows = table, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Batch:
        return {name: values[self.rows[index]] for name, values in self.table.items()}


class Matches(pl.LightningDataModule):
    """Games, two thirds to learn from; a batch holds boards, lengths, moves and every label by name."""

    def __init__(self, games: int = 3000, batch_size: int = 32, seed: int = 0) -> None:
        super().__init__()
        self.games, self.batch_size, self.seed = games, batch_size, seed

    def setup(self, stage: str) -> None:
        games = play(self.games, self.seed)
        arrays = {"boards": games.planes(), "lengths": games.lengths, "moves": games.moves, "winner": games.winners}
        table = {name: torch.from_numpy(values) for name, values in (arrays | games.labels()).items()}
        seen = self.games * 2 // 3
        self.train, self.held = Rows(table, range(seen)), Rows(table, range(seen, self.games))

    def train_dataloader(self) -> DataLoader[Batch]:
        return DataLoader(self.train, self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader[Batch]:
        return DataLoader(self.held, 250)


def positions(batch: Batch, where: Tensor) -> Batch:
    """The positions at the steps ``where`` ``(B, T)``, each alone, as inputs of the model."""
    boards = batch["boards"][where & (batch["ends"] >= 0)][:, None]
    return {"boards": boards, "lengths": torch.ones(len(boards), dtype=torch.long)}


def attack(batch: Batch) -> Batch:
    """A context: positions in which the player to move can win."""
    return positions(batch, batch["immediate_win_current"] == 1)


def defend(batch: Batch) -> Batch:
    """A context: positions in which he cannot, and must block."""
    return positions(batch, (batch["immediate_win_opponent"] == 1) & (batch["immediate_win_current"] == 0))


def neutral(batch: Batch) -> Batch:
    """A context: positions in which nobody can win with one move."""
    return positions(batch, (batch["immediate_win_opponent"] == 0) & (batch["immediate_win_current"] == 0))


def game_phase(batch: Batch) -> Tensor:
    """The task phase of every step, ``(B, T)``: 0 opening, 1 middle game, 2 end game, -1 after the end."""
    return batch["game_phase"]


def winner(batch: Batch) -> Tensor:
    """Who won, ``(B,)``: the colour of a trajectory."""
    return batch["winner"]
