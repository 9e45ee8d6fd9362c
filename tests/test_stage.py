"""A stage is a value, and an impossible one is refused by name."""

import dataclasses

import pytest

from dcjax import recipes, stage
from dcjax.errors import DcjaxError

OPTIONS = dict(objective='flow', data='clip', train='.*', steps=4, batch=6)


def make(**options):
  return stage.from_config('set', OPTIONS | options)


def test_stages_of_the_recipes_are_the_papers():
  """Set-and-Sequence, Table 6, and what each stage may touch."""
  c = recipes.personalize('paper')
  first, second = stage.several(c)
  assert (first.name, second.name) == ('set', 'sequence')
  assert (first.steps, second.steps) == (600, 900)
  assert (first.dropout, second.dropout) == (0.8, 0.5)
  assert (first.data, second.data) == ('frames', 'clip')
  for s in (first, second):
    o = s.optimizer
    assert (s.batch, s.text_drop, s.prior) == (8, 0.1, 1.0)
    assert (o.kind, o.lr, o.betas, o.eps) == ('adamw', 1e-4, (0.9, 0.99), 1e-8)
    assert (o.weight_decay, o.clip, o.schedule) == (0.01, 0.05, 'constant')
    assert o.groups == (('^tokens/', 0.1),)


def test_a_mix_is_its_own_batch():
  assert make(mix=((1, 5), (17, 3))).batch == 8


def test_equal_options_give_equal_stages():
  """A run is resumed by comparing them; lists of a config are tuples here."""
  a, b = make(mix=[[1, 2]]), make(mix=((1, 2),))
  assert a == b
  assert repr(a) == repr(b)
  assert a != dataclasses.replace(b, dropout=0.5)


@pytest.mark.parametrize(
  'names', [('set', 'sequense'), ('set', 'set'), (), ('lora',), (1,)]
)
def test_stages_of_a_config_are_some_of_its_own_each_once(names):
  """One that came twice would find its own checkpoints, and be skipped."""
  c = recipes.personalize('paper')
  c.stages = names
  line = 'config.stages is .*; expected some of sequence, set, each once'
  with pytest.raises(DcjaxError, match=line) as error:
    stage.several(c)
  assert '\n' not in str(error.value)


def test_stages_of_a_config_are_in_its_order_and_may_be_none():
  c = recipes.personalize('paper')
  c.stages = ('sequence', 'set')
  assert [s.name for s in stage.several(c)] == ['sequence', 'set']
  c.stages = ()
  assert stage.several(c, least=0) == ()


@pytest.mark.parametrize(
  'options,line',
  [
    ({'steps': 0}, 'config.set.steps is 0; expected at least 1'),
    ({'batch': 0}, 'config.set.batch is 0'),
    ({'accumulate': 4}, 'config.set.accumulate is 4; .*divisor.*6'),
    ({'accumulate': 0}, 'config.set.accumulate is 0'),
    ({'dropout': 1.0}, 'config.set.dropout is 1.0; .*0 to below 1'),
    ({'dropout': float('nan')}, 'config.set.dropout is nan'),
    ({'text_drop': -0.1}, 'config.set.text_drop is -0.1'),
    ({'ema': 1.0}, 'config.set.ema is 1.0'),
    ({'prior': -1.0}, 'config.set.prior is -1.0'),
    ({'self_cond': 1.5}, 'config.set.self_cond is 1.5'),
    ({'objective': 'nonsense'}, "config.set.objective is 'nonsense'; .*flow"),
    ({'data': 'clips'}, "config.set.data is 'clips'; .*frames or clip"),
    ({'t_sampler': 'beta'}, "config.set.t_sampler is 'beta'; .*uniform"),
    ({'optimizer': {'lr': -1.0}}, 'config.set.optimizer.lr is -1.0'),
    ({'optimizer': {'groups': (('(a', 1.0),)}}, r'optimizer.groups is .*\(a'),
    ({'optimizer': {'groups': (('a', -1.0),)}}, 'optimizer.groups is .*factor'),
    ({'optimizer': {'groups': ('tokens', 0.1)}}, 'optimizer.groups .*pairs'),
    ({'step': 5}, 'config.set.step is not an option; use one of .*steps'),
    ({'optimizer': {'rate': 1}}, 'config.set.optimizer.rate is not an .*lr'),
  ],
)
def test_impossible_options_are_one_line(options, line):
  with pytest.raises(DcjaxError, match=line) as error:
    make(**options)
  assert '\n' not in str(error.value)
