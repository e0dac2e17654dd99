#!/usr/bin/env bash
# One Ray node per Slurm task, then one nas command on all of them:
#
#   sbatch --nodes=4 --gpus-per-node=8 deploy/slurm.sh search --data /data/photos \
#       --target-latency 5ms --device a100 --name photos
#
# A preempted job continues when it is submitted again: the command gets --resume where its run is
# there already. Give --name, and put the folder of runs on a file system that all nodes mount.
#SBATCH --job-name=nas
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@120
set -euo pipefail

: "${RUNS:=runs}" "${WORKERS:=${SLURM_GPUS_ON_NODE:+$((SLURM_GPUS_ON_NODE * SLURM_NNODES))}}"
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$PWD/.ray-token-$SLURM_JOB_ID"
umask 077
ray get-auth-token --generate > /dev/null 2>&1 || true
cp ~/.ray/auth_token "$RAY_AUTH_TOKEN_PATH"

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}
port=$((20000 + SLURM_JOB_ID % 20000))
address=$(srun --nodes=1 --ntasks=1 -w "$head" hostname --ip-address | awk '{print $1}')

stop() {
    srun --ntasks-per-node=1 ray stop > /dev/null 2>&1 || true
    rm -f "$RAY_AUTH_TOKEN_PATH"
}
trap stop EXIT

srun --nodes=1 --ntasks=1 -w "$head" \
    ray start --head --node-ip-address="$address" --port="$port" --block &
sleep 15
for node in "${nodes[@]:1}"; do
    srun --nodes=1 --ntasks=1 -w "$node" ray start --address="$address:$port" --block &
done
sleep 15

name=
for ((i = 1; i <= $#; i++)); do
    if [ "${!i}" = --name ]; then
        j=$((i + 1))
        name=${!j}
    fi
done
resume=()
if [ -n "$name" ] && [ -e "$RUNS/$name/config.yaml" ]; then
    resume=(--resume)
fi

# In the background, so that the shell can pass the warning of a preemption on.
nas "$@" --runs "$RUNS" --workers "${WORKERS:-$SLURM_NNODES}" --address "$address:$port" "${resume[@]}" &
child=$!
trap 'kill -TERM "$child"' TERM
wait "$child"
