"""Bases from the Hugging Face hub, through its own cache on disk."""

from pathlib import Path
import re

from dcjax.errors import DcjaxError

# All that is asked for: no pickles, no pictures, no second transformer.
FILES = (
  *('model_index.json', 'dcjax.json', 'scheduler/*.json'),
  *(
    f'{part}/{file}'
    for part in ('transformer', 'vae', 'text_encoder')
    for file in ('config.json', '*.safetensors', '*.safetensors.index.json')
  ),
  *('tokenizer/*.json', 'tokenizer/spiece.model'),
  *('reference/config.json', 'reference/model.safetensors'),
)
_ID = re.compile(r'[\w-][\w.-]*/[\w-][\w.-]*(@[\w.-]+)?')


def is_id(name: str) -> bool:
  """Whether a name has the form owner/model, or owner/model@revision."""
  return bool(_ID.fullmatch(name)) and '..' not in name


def fetch(name: str) -> Path:
  """The folder of a repository in the local cache; downloads what it lacks.

  Args:
    name: 'owner/model', or 'owner/model@revision'.

  Raises:
    DcjaxError: it is not in the cache and cannot be downloaded.
  """
  import huggingface_hub

  repository, _, revision = name.partition('@')
  try:
    folder = huggingface_hub.snapshot_download(
      repository,
      revision=revision or None,
      allow_patterns=list(FILES),
      # Some versions ask for a revision that is here, even when offline.
      local_files_only=huggingface_hub.constants.HF_HUB_OFFLINE,
    )
  except Exception as error:  # of the hub, of httpx, of the disk
    raise DcjaxError(
      f'{name} is no folder here, is not in the cache of the hub and cannot be '
      f'downloaded ({_reason(error)}); place its model_index.json and its '
      'folders transformer, vae, text_encoder (config.json and .safetensors), '
      'tokenizer and scheduler into one folder, and give that'
    ) from error
  return Path(folder)


def _reason(error: Exception) -> str:
  from huggingface_hub.errors import LocalEntryNotFoundError

  if isinstance(error, LocalEntryNotFoundError):
    return 'the hub cannot be reached'
  text = ' '.join(str(error).split()) or type(error).__name__
  return text.partition('. ')[0].rstrip('.')
