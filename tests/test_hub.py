"""Bases of the hub: out of its cache on disk, never from a network."""

from pathlib import Path
import shutil
import subprocess
import sys

from folders import equal
import huggingface_hub
import numpy as np
import pytest
import tiny

from dcjax.errors import DcjaxError
from dcjax.weights import hub, reference
from dcjax.weights.base import load_base, save_base

ID = 'Wan-AI/Wan2.1-T2V-1.3B-Diffusers'
COMMIT = '0' * 40


@pytest.fixture(scope='module')
def base():
  return tiny.base()


@pytest.fixture
def cache(base, tmp_path, monkeypatch):
  """A cache as the hub's library lays it out, with one repository."""
  repository = tmp_path / f'models--{ID.replace("/", "--")}'
  save_base(base, repository / 'snapshots' / COMMIT, dtype=np.float32)
  (repository / 'snapshots' / COMMIT / 'dcjax.json').unlink()
  (repository / 'refs').mkdir()
  (repository / 'refs' / 'main').write_text(COMMIT)
  monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_CACHE', str(tmp_path))
  return repository


def download(function, monkeypatch):
  """Puts a function in the place of the library's download."""
  monkeypatch.setattr(huggingface_hub, 'snapshot_download', function)


def test_a_base_of_the_cache_is_loaded_offline(base, cache):
  assert huggingface_hub.constants.HF_HUB_OFFLINE
  back = load_base(ID)
  assert back.name == ID
  assert equal(back.params, base.params)
  assert back.fingerprint == base.fingerprint
  assert load_base(f'{ID}@{COMMIT}').fingerprint == base.fingerprint


def test_only_what_is_needed_is_asked_for(base, tmp_path, monkeypatch):
  """Of a repository with everything that such repositories hold."""
  whole, part = tmp_path / 'whole', tmp_path / 'part'
  save_base(base, whole, dtype=np.float32)
  tiny.reference_folder(whole / 'reference', base)
  extra = ('README.md', 'assets/logo.png', 'vae/model.bin', 'model.pth')
  extra += ('reference/training.json',)
  extra += ('transformer_2/diffusion_pytorch_model.safetensors', 'run.py')
  for name in extra:
    (whole / name).parent.mkdir(exist_ok=True)
    (whole / name).write_text('not asked for')

  def snapshot_download(repository, *, revision, allow_patterns, **options):
    assert (repository, revision) == (ID, 'v1')
    files = [str(x.relative_to(whole)) for x in whole.rglob('*') if x.is_file()]
    wanted = huggingface_hub.utils.filter_repo_objects(
      files, allow_patterns=allow_patterns
    )
    for name in wanted:
      (part / name).parent.mkdir(parents=True, exist_ok=True)
      shutil.copy(whole / name, part / name)
    return str(part)

  download(snapshot_download, monkeypatch)
  back = load_base(f'{ID}@v1')
  assert equal(back.params, base.params)
  assert reference.equip(back).reference == tiny.REFERENCES
  assert not [name for name in extra if (part / name).exists()]


def test_offline_and_not_in_the_cache_is_one_line(tmp_path, monkeypatch):
  monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_CACHE', str(tmp_path))
  with pytest.raises(DcjaxError) as error:
    load_base(ID)
  message = str(error.value)
  for words in (ID, 'model_index.json', 'text_encoder', '.safetensors'):
    assert words in message
  assert '\n' not in message and len(message) < 600


@pytest.mark.parametrize(
  'reason', [OSError(28, 'No space left'), RuntimeError('a\nb'), ValueError()]
)
def test_a_failed_download_is_one_line(reason, monkeypatch):
  def snapshot_download(*args, **kwargs):
    raise reason

  download(snapshot_download, monkeypatch)
  with pytest.raises(DcjaxError, match='cannot be downloaded') as error:
    load_base(ID)
  assert '\n' not in str(error.value)


def test_a_download_that_broke_off_names_what_is_missing(cache):
  folder = cache / 'snapshots' / COMMIT
  shutil.rmtree(folder / 'vae')
  with pytest.raises(DcjaxError, match='vae/config.json is missing'):
    load_base(ID)


@pytest.mark.parametrize(
  'name', ['a/b/c', '/a', 'a', 'a/../b', '../a', 'a b/c', 'a/b@', './a', '~/a']
)
def test_what_is_no_id_is_not_looked_for(name, monkeypatch):
  assert not hub.is_id(name)
  download(lambda *args, **kwargs: pytest.fail('asked the hub'), monkeypatch)
  with pytest.raises(DcjaxError, match='no base model at'):
    load_base(name)


def test_a_folder_stands_above_an_id(base, tmp_path, monkeypatch):
  download(lambda *args, **kwargs: pytest.fail('asked the hub'), monkeypatch)
  monkeypatch.chdir(tmp_path)
  save_base(base, Path('runs') / 'base', dtype=np.float32)
  assert load_base('runs/base').fingerprint == base.fingerprint


def test_the_library_is_not_imported_for_a_folder():
  program = (
    'import sys, dcjax.weights.base\nprint("huggingface_hub" in sys.modules)'
  )
  done = subprocess.run(
    [sys.executable, '-c', program], capture_output=True, text=True, check=True
  )
  assert done.stdout.split() == ['False']
