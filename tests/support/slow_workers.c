/* Preloaded by `soak.py --ends N --slow-workers`: holds gloo's worker threads up, for SLOW_US microseconds at most, where
   they note the name of an all-reduce that they have completed. The kernel may do so at any instruction, but seldom does
   there. With two workers a group (torch's own "gloo") most runs then die of "malloc(): unaligned tcache chunk detected".

   libtorch copies that name by memcpy, so memcpy is what is replaced. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static __thread unsigned draw;

static void hold_up(void) {
  char name[16] = "";
  const char *longest = getenv("SLOW_US");
  if (!longest || pthread_getname_np(pthread_self(), name, sizeof name) || strcmp(name, "pt_gloo_runloop")) return;
  if (!draw) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    draw = (unsigned)now.tv_nsec | 1;
  }
  if (rand_r(&draw) & 1) usleep(rand_r(&draw) % (unsigned)atoi(longest));
}

void *memcpy(void *to, const void *from, size_t size) {
  if (size == 9 && !memcmp(from, "ALLREDUCE", 9)) hold_up();
  return memmove(to, from, size);
}
