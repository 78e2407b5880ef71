#!/bin/bash
# A task of an array that shares one run, without Prefect: each claims shards, and takes over from one that is killed.
# Start the run on one machine (genenc extract ... --out RUN), then:
#   sbatch --array=0-3 deployments/resume.sh RUN
# Kubernetes runs it too: kubernetes/indexed-job.yaml. More options are those of genenc resume.
#SBATCH --job-name=genenc
#SBATCH --gpus=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=16G
#SBATCH --time=08:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
set -uo pipefail
run=${1:?usage: sbatch --array=0-3 resume.sh RUN [OPTION...]}
shift
# The time limit's signal reaches this shell: genenc ends within a batch, and keeps whole shards.
genenc resume "$run" --plain "$@" &
process=$!
trap 'kill -TERM "$process"' TERM
wait "$process"
code=$?
trap - TERM
if kill -0 "$process" 2>/dev/null; then # the signal ended the first wait
    wait "$process"
    code=$?
fi
# 3: every shard is stored, and some images are unreadable (genenc status "$run" lists them).
if [ "$code" -eq 3 ]; then code=0; fi
exit "$code"
