"""Few shapes, true speed, and a table of losses that adds up."""

import collections
import itertools
import json

import numpy as np
import pytest

from dcjax.data import buckets, pipeline, probe, windows
from dcjax.data import video as video_lib
from dcjax.data.buckets import Bucket, Grid, Place, Size
from dcjax.errors import DcjaxError

GRID = Grid(frames=17, height=64, width=64, rows=8, columns=8, time=4)


def some_sizes(seed=0, count=60):
  """Files of many sizes and lengths."""
  rng = np.random.default_rng(seed)
  shapes = [(64, 64), (100, 180), (180, 100), (50, 57), (300, 400)]
  frames = rng.choice([1, 1, 5, 8, 13, 17, 40, 90], count)
  places = rng.integers(len(shapes), size=count)
  return [Size(int(f), *shapes[i]) for f, i in zip(frames, places, strict=True)]


# ---- the choice --------------------------------------------------------------


@pytest.mark.parametrize('limit', [2, 4, 7])
def test_buckets_are_few_and_can_be_made(limit):
  chosen = buckets.choose(some_sizes(), GRID, limit)
  assert 2 <= len(chosen) <= limit
  for bucket in chosen:
    assert bucket.frames <= 17 and bucket.frames % 4 == 1
    assert bucket.height % 8 == bucket.width % 8 == 0
    assert 0.8 < bucket.height * bucket.width / 64**2 < 1.2


def test_every_file_has_one_place_and_the_losses_add_up():
  sizes = some_sizes()
  chosen = buckets.choose(sizes, GRID, 5)
  places = [buckets.place(size, chosen, GRID) for size in sizes]
  for size, place in zip(sizes, places, strict=True):
    if place is None:
      assert size.frames < min(b.frames for b in chosen if b.frames > 1)
      continue
    f, h, w = place.bucket
    # A picture is never a clip, and a clip never a picture.
    assert (f == 1) == (size.frames == 1)
    assert place.windows * f + place.lost == size.frames
    assert 0 <= place.lost < f
    # The crop by another way: the sides that are left of the scaled picture.
    scaled = size.height * place.scale, size.width * place.scale
    assert scaled[0] > h - 1e-6 and scaled[1] > w - 1e-6
    assert place.cut == pytest.approx(1 - h * w / (scaled[0] * scaled[1]))
  used = [x for x in places if x is not None]
  head, *rows, total = buckets.table(used)
  column = lambda name: [int(row[head.index(name)]) for row in rows]
  assert sum(column('files')) == len(used) == int(total[1])
  assert sum(column('samples')) == sum(x.windows for x in used)
  together = sum(column('frames')) + sum(column('left over'))
  assert together == sum(
    s.frames for s, x in zip(sizes, places, strict=True) if x is not None
  )


def test_a_shape_that_loses_nothing_is_found():
  sizes = [Size(17, 64, 64)] * 5 + [Size(9, 32, 128)] * 2 + [Size(1, 128, 32)]
  chosen = buckets.choose(sizes, GRID, 4)
  assert chosen == [(1, 128, 32), (9, 32, 128), (17, 64, 64)]
  for size in sizes:
    place = buckets.place(size, chosen, GRID)
    assert (place.lost, place.cut) == (0, 0)


def test_choice_is_the_best_of_all_by_brute_force():
  sizes = some_sizes(count=14)
  cost = lambda chosen: sum(
    min(buckets._cost(size, b, GRID) for b in chosen) for size in sizes
  )
  candidates = buckets._candidates(sizes, GRID)[::3]  # every third: 8 x fewer
  least = min(cost(x) for x in itertools.combinations(candidates, 2))
  assert cost(buckets.choose(sizes, GRID, 2)) <= least + 1e-9


def test_another_shape_must_be_worth_its_compilation():
  nearly = [Size(17, 64, 64)] * 99 + [Size(17, 64, 66)]
  assert buckets.choose(nearly, GRID, 8) == [(17, 64, 64)]


def test_long_clips_give_windows_up_to_the_most():
  place = lambda most: buckets.place(
    Size(90, 64, 64), [Bucket(17, 64, 64)], GRID, most
  )
  assert (place(0).windows, place(0).lost) == (5, 5)
  assert (place(2).windows, place(2).lost) == (2, 56)


def test_too_short_for_all_shapes_is_said():
  assert buckets.place(Size(9, 64, 64), [Bucket(17, 64, 64)], GRID) is None


@pytest.mark.parametrize(
  'sizes,limit,words',
  [
    ([Size(17, 64, 64)], 0, 'expected 1 or more'),
    ([Size(17, 64, 64), Size(1, 64, 64)], 1, 'pictures and clips'),
  ],
)
def test_mistakes_are_one_line(sizes, limit, words):
  with pytest.raises(DcjaxError, match=words) as error:
    buckets.choose(sizes, GRID, limit)
  assert '\n' not in str(error.value)


# ---- true speed --------------------------------------------------------------


def bar(path, fps, seconds, width=96):
  """A white bar that moves 30 pixels a second, on black."""
  count = round(fps * seconds)
  frames = np.zeros((count, 16, width, 3), np.uint8)
  for i, frame in enumerate(frames):
    left = round(30 * i / fps)
    frame[:, left : left + 4] = 255
  video_lib.write_video(path, frames, fps)
  return path


def left_edges(clip):
  """Column at which the bar begins, by brightness."""
  return [int(np.argmax(x.mean(axis=(0, 2)) > 128)) for x in clip]


@pytest.mark.parametrize('fps', [30.0, 24.0, 8.0, 4.0])
def test_motion_has_its_true_speed_at_the_rate_of_the_base(tmp_path, fps):
  """Whatever the rate of the file: 30 pixels a second, at 8 frames a second."""
  path = bar(tmp_path / 'bar.mp4', fps, 2.5)
  found = probe.probe(path)
  assert found.fps == pytest.approx(fps)
  assert found.seconds == pytest.approx(2.5)
  count = found.count(8)
  assert count == 20
  place = Place(Bucket(9, 16, 96), 2, 2, 0.0, 1.0)
  clips = list(windows.windows(path, place, 8.0))
  edges = left_edges(np.concatenate(clips))
  # Half a frame of the file is the best that its own frames allow.
  off = np.abs(np.array(edges) - 30 * np.arange(18) / 8)
  assert off.max() <= 30 / fps / 2 + 1.01
  if fps >= 8:
    assert np.abs(np.diff(edges) - 30 / 8).max() < 30 / fps + 1.01


def test_windows_follow_one_another_without_gap(tmp_path):
  path = bar(tmp_path / 'bar.mp4', 8.0, 2.5)
  whole = next(
    windows.windows(path, Place(Bucket(17, 16, 96), 1, 3, 0, 1), 8.0)
  )
  parts = windows.windows(path, Place(Bucket(5, 16, 96), 3, 5, 0, 1), 8.0)
  np.testing.assert_array_equal(np.concatenate(list(parts)), whole[:15])


def test_a_file_that_became_shorter_is_an_error(tmp_path):
  path = bar(tmp_path / 'bar.mp4', 8.0, 1.0)
  place = Place(Bucket(9, 16, 96), 1, 0, 0, 1)
  with pytest.raises(DcjaxError, match='has changed'):
    list(windows.windows(path, place, 8.0))


def test_probes_come_back_from_arrays(tmp_path):
  path = bar(tmp_path / 'bar.mp4', 24.0, 1.0)
  one = probe.probe(path)
  again = probe.from_arrays(probe.to_arrays(one))
  assert (again.count(7), again.fps) == (one.count(7), one.fps)
  assert (again.height, again.width, again.is_still) == (16, 96, False)


# ---- masks -------------------------------------------------------------------


def test_weight_is_area_average_in_causal_groups_with_mean_1():
  mask = np.zeros((9, 8, 16), np.float32)
  mask[0, :, :4] = 1  # the first frame is a group of its own
  mask[3, :4, 8:] = 1  # one frame of the second group
  weight = windows.loss_weight(mask, 4, 8, 4, outside=0.0)
  assert weight.shape == (3, 4, 8, 1) and weight.dtype == np.float32
  assert weight.mean() == pytest.approx(1, abs=1e-6)
  assert (weight[0, :, :2] > 0).all() and not weight[0, :, 2:].any()
  assert (weight[1, :2, 4:] > 0).all() and not weight[1, 2:].any()
  assert not weight[2].any()
  mean = windows.loss_weight(mask, 4, 8, 4, outside=0.0, over_time='mean')
  # The first frame against a quarter of a group.
  assert mean[0, 0, 0, 0] / mean[1, 0, 4, 0] == pytest.approx(4)
  half = windows.loss_weight(mask, 4, 4, 4, outside=0.5)
  assert half[0, 0, 0, 0] / half[2, 0, 0, 0] == pytest.approx(2)


def test_mask_of_nothing_is_an_error_only_if_nothing_else_counts():
  mask = np.zeros((1, 8, 8), np.float32)
  with pytest.raises(DcjaxError, match='nothing is left'):
    windows.loss_weight(mask, 4, 4, 4, outside=0.0)
  assert (windows.loss_weight(mask, 4, 4, 4, outside=0.1) == 1).all()


def test_still_masks_hold_and_moving_ones_follow(tmp_path):
  place = Place(Bucket(5, 16, 96), 2, 0, 0, 1)
  path = bar(tmp_path / 'mask.mp4', 8.0, 10 / 8)
  moving = np.concatenate(list(windows.masks(path, place, 8.0)))
  assert moving.shape == (10, 16, 96)
  assert moving[0, 0, 1] > 0.9 and moving[9, 0, 1] < 0.1
  picture = np.zeros((1, 16, 96, 3), np.uint8)
  picture[:, :, :48] = 255
  video_lib.write_video(tmp_path / 'still.png', picture)
  still = np.concatenate(list(windows.masks(tmp_path / 'still.png', place, 8)))
  assert (still == still[0]).all() and still.mean() == 0.5


# ---- batches -----------------------------------------------------------------


def sources(*counts):
  """Numbered examples; those of source i have i + 1 frames."""
  return [
    [
      {'latents': np.full((i + 1, 1, 1, 1), 100 * i + k, np.float32)}
      for k in range(count)
    ]
    for i, count in enumerate(counts)
  ]


@pytest.fixture(params=['grain', 'plain'])
def backend(request, monkeypatch):
  if request.param == 'plain':
    monkeypatch.setitem(__import__('sys').modules, 'grain', None)
  else:
    pytest.importorskip('grain')


def load(*counts, batch=4, **options):
  return pipeline.bucketed(
    sources(*counts), batch=batch, **({'seed': 0} | options)
  )


def numbers(batch):
  return batch['latents'][:, 0, 0, 0, 0].astype(int).tolist()


def test_turns_are_in_proportion_and_every_example_is_fair(backend):
  counts, cycles = (6, 3, 1), 4
  turns, seen = collections.Counter(), collections.Counter()
  loader = load(*counts)
  for _ in range(sum(counts) * cycles):
    batch = next(loader)
    (source,) = {x // 100 for x in numbers(batch)}
    assert batch['latents'].shape == (4, source + 1, 1, 1, 1)
    turns[source] += 1
    seen.update(numbers(batch))
  assert turns == {i: count * cycles for i, count in enumerate(counts)}
  # Batch x cycles visits each, as in one shuffled pile.
  assert set(seen.values()) == {4 * cycles} and len(seen) == sum(counts)


def test_turns_do_not_come_in_order():
  loader = load(8, 8, batch=1)
  order = [numbers(next(loader))[0] // 100 for _ in range(64)]
  changes = sum(a != b for a, b in itertools.pairwise(order))
  assert 16 < changes < 48
  assert order[:16] != order[16:32]


def test_resume_is_exact_and_state_is_one_number(backend):
  first, again = load(5, 3, 2), load(5, 3, 2)
  for _ in range(7):
    next(first)
  state = json.loads(json.dumps(first.get_state()))
  assert list(state.values()) == [7]
  again.set_state(state)
  for _ in range(25):
    a, b = next(first), next(again)
    assert a['latents'].tobytes() == b['latents'].tobytes()


def test_processes_share_one_bucket_a_step(backend):
  whole = load(5, 3, batch=4)
  parts = [load(5, 3, batch=4, rows=rows) for rows in ([0, 1], [2, 3])]
  for _ in range(20):
    both = [numbers(next(part)) for part in parts]
    assert list(itertools.chain(*both)) == numbers(next(whole))
    assert [len(x) for x in both] == [2, 2]


@pytest.mark.parametrize(
  'counts,options,words',
  [
    ((), {}, 'no examples'),
    ((3, 0), {}, 'no examples'),
    ((3,), {'batch': 0}, 'batch'),
  ],
)
def test_impossible_batches_are_one_line(counts, options, words):
  with pytest.raises(DcjaxError, match=words):
    load(*counts, **options)
