/* simple_spread in plain C: the limit for `particles/spread`. Environments innermost, as there.
   Usage: particles <environments> <agents> <steps>; prints CPU seconds and a checksum. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static float *array(size_t n) { return calloc(n, sizeof(float)); }
static float unit(unsigned *s) {
    *s = *s * 1664525u + 1013904223u;
    return (float)(*s >> 8) / 8388608.0f - 1.0f;
}

int main(int argc, char **argv) {
    if (argc != 4) return 2;
    const int n = atoi(argv[1]), a = atoi(argv[2]), steps = atoi(argv[3]), d = 6 * a;
    float *p = array(2 * a * n), *v = array(2 * a * n), *f = array(2 * a * n), *m = array(2 * a * n);
    float *u = array(2 * a * n), *obs = array((size_t)n * a * d), *reward = array(n), *near = array(n);
    unsigned seed = 1;
    for (int i = 0; i < 2 * a * n; i++) p[i] = unit(&seed), m[i] = unit(&seed), u[i] = unit(&seed);
    double sum = 0;
    struct timespec t0, t1;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t0);
    for (int t = 0; t < steps; t++) {
        for (int i = 0; i < 2 * a * n; i++) f[i] = 5.0f * fminf(fmaxf(u[i], -1.0f), 1.0f);
        for (int i = 0; i < a; i++)
            for (int j = i + 1; j < a; j++)
                for (int k = 0; k < n; k++) {
                    float dx = p[i * n + k] - p[j * n + k], dy = p[(a + i) * n + k] - p[(a + j) * n + k];
                    float r = sqrtf(dx * dx + dy * dy) + 1e-12f, x = (0.3f - r) * 1000.0f;
                    float c = 0.1f * (fmaxf(x, 0.0f) + log1pf(expf(-fabsf(x)))) / r;
                    f[i * n + k] += c * dx, f[(a + i) * n + k] += c * dy;
                    f[j * n + k] -= c * dx, f[(a + j) * n + k] -= c * dy;
                }
        for (int i = 0; i < 2 * a * n; i++) {
            p[i] += 0.1f * v[i];
            v[i] = 0.75f * v[i] + 0.1f * f[i];
        }
        for (int k = 0; k < n; k++) reward[k] = 0.0f;
        for (int l = 0; l < a; l++) {
            for (int k = 0; k < n; k++) near[k] = 1e9f;
            for (int i = 0; i < a; i++)
                for (int k = 0; k < n; k++) {
                    float dx = m[l * n + k] - p[i * n + k], dy = m[(a + l) * n + k] - p[(a + i) * n + k];
                    near[k] = fminf(near[k], sqrtf(dx * dx + dy * dy));
                }
            for (int k = 0; k < n; k++) reward[k] -= 0.5f * near[k];
        }
        for (int i = 0; i < a; i++)
            for (int j = i + 1; j < a; j++)
                for (int k = 0; k < n; k++) {
                    float dx = p[i * n + k] - p[j * n + k], dy = p[(a + i) * n + k] - p[(a + j) * n + k];
                    reward[k] -= (dx * dx + dy * dy < 0.09f) ? 1.0f / a : 0.0f;
                }
        for (int i = 0; i < a; i++)
            for (int k = 0; k < n; k++) {
                float *o = obs + ((size_t)k * a + i) * d;
                float x = p[i * n + k], y = p[(a + i) * n + k];
                int c = 0;
                o[c++] = x, o[c++] = y, o[c++] = v[i * n + k], o[c++] = v[(a + i) * n + k];
                for (int j = 0; j < a; j++)
                    if (j != i) o[c++] = p[j * n + k] - x, o[c++] = p[(a + j) * n + k] - y;
                for (int j = 0; j < a; j++)
                    if (j != i) o[c++] = v[j * n + k], o[c++] = v[(a + j) * n + k];
                for (int l = 0; l < a; l++) o[c++] = m[l * n + k] - x, o[c++] = m[(a + l) * n + k] - y;
            }
        sum += reward[t % n] + obs[t % (n * a * d)];
    }
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t1);
    printf("%.9f %.9g\n", (t1.tv_sec - t0.tv_sec) + 1e-9 * (t1.tv_nsec - t0.tv_nsec), sum);
    return 0;
}
