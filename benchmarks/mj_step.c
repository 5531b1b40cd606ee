// The limit that batched environments are measured against: mj_step in a bare loop, one hot mjData,
// no Python.
// Usage: mj_step model.mjb input.bin nsim nsteps frame_skip
// input.bin: float64 state[nsim][mjSTATE_INTEGRATION], then ctrl[nsteps][nsim][nu]. Prints CPU seconds
// and the sum of all final qpos.
#include <mujoco/mujoco.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static double cpu_seconds(void) {
  struct timespec t;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return t.tv_sec + 1e-9 * t.tv_nsec;
}

int main(int argc, char** argv) {
  if (argc != 6) return fprintf(stderr, "usage: mj_step model.mjb input.bin nsim nsteps skip\n"), 2;
  mjModel* m = mj_loadModel(argv[1], NULL);
  FILE* file = fopen(argv[2], "rb");
  if (!m || !file) return fprintf(stderr, "cannot read the model or the input\n"), 2;
  int nsim = atoi(argv[3]), nsteps = atoi(argv[4]), skip = atoi(argv[5]);
  int size = mj_stateSize(m, mjSTATE_INTEGRATION);
  size_t ns = (size_t)nsim * size, nu = (size_t)nsteps * nsim * m->nu;
  double* state = malloc(ns * sizeof(double));
  double* ctrl = malloc(nu * sizeof(double));
  if (fread(state, 8, ns, file) != ns || fread(ctrl, 8, nu, file) != nu)
    return fprintf(stderr, "input.bin is too short\n"), 2;
  mjData* d = mj_makeData(m);
  double checksum = 0, start = cpu_seconds();
  for (int i = 0; i < nsim; i++) {
    mj_resetData(m, d);
    mj_setState(m, d, state + (size_t)i * size, mjSTATE_INTEGRATION);
    for (int t = 0; t < nsteps; t++) {
      memcpy(d->ctrl, ctrl + ((size_t)t * nsim + i) * m->nu, m->nu * sizeof(double));
      for (int k = 0; k < skip; k++) mj_step(m, d);
    }
    for (int k = 0; k < m->nq; k++) checksum += d->qpos[k];
  }
  printf("%.6f %.12f\n", cpu_seconds() - start, checksum);
  return 0;
}
