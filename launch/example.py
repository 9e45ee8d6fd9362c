"""Set-and-Sequence on Wan 2.1 14B, on sixteen chips of v6e: four processes.

python -m launch.gke --job=launch/example.py > job.yaml

PROJECT and BUCKET are yours to fill in; docs/launch.md says how to make them.
"""

from launch.job import Job

JOB = Job(
  name='cat',
  accelerator='v6e',
  topology='4x4',
  image='us-docker.pkg.dev/project/dcjax/dcjax:tpu',
  bucket='bucket-of-project',
  command=(
    '--config=configs/set_seq.py:wan_14b',
    '--config.mesh.fsdp=2',
    '--config.mesh.context=2',
    '--config.base=/bucket/bases/Wan2.1-T2V-14B-Diffusers',
    '--config.data.video=/bucket/videos/cat.mp4',
    '--config.prompts.appearance=a [v] cat on a wooden floor',
    '--config.prompts.motion=the cat is [u] boxing',
  ),
  queue='dcjax',
  service_account='dcjax',
)
