/* libcuda.so.1 of the card that computes nothing: a context is there, and that is all. See card.c. */
#define API __attribute__((visibility("default")))

API int cuInit(unsigned flags) { return (void)flags, 0; }

API int cuDriverGetVersion(int *version) {
  *version = 13000;
  return 0;
}

API int cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) {
  (void)device;
  *flags = 0;
  *active = 1;
  return 0;
}

API int cuCtxGetCurrent(void **context) {
  static char one[64];
  *context = one;
  return 0;
}

API int cuDevicePrimaryCtxRetain(void **context, int device) { return (void)device, cuCtxGetCurrent(context); }
API int cuCtxSetCurrent(void *context) { return (void)context, 0; }
