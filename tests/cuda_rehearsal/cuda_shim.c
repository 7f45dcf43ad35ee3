/* Answers the few questions that torch's C++ code asks the CUDA driver before a kernel runs.

   Most of the rehearsal replaces Python functions (pretended_card.py). Three questions are asked in
   C++, where Python cannot answer them. This library answers them when it is preloaded:

     - how many cards there are (the autograd engine, before a backward pass);
     - whether a card has a context (the autograd engine, after a backward pass);
     - what the card can do (scaled dot product attention and grouped products, to choose a kernel).

   The library has the name libcuda.so.1, so the real driver is not loaded, even if there is one.
   environment.py compiles it. */

#include <driver_types.h>
#include <string.h>

/* Zero until Python has installed fake tensors' device guard. Before that moment torch would take a
   card that is announced here for a real one. pretended_card.py writes this variable. */
int announced_cards = 0;

/* The card's capability. pretended_card.py writes these variables, too. */
int card_major = 0;
int card_minor = 0;

/* The names after __asm__ are the C++ functions' mangled names in the pinned torch. */

signed char device_count(void) __asm__("_ZN3c104cuda12device_countEv");
struct cudaDeviceProp *current_properties(void)
    __asm__("_ZN2at4cuda26getCurrentDevicePropertiesEv");
struct cudaDeviceProp *properties_of(signed char device)
    __asm__("_ZN2at4cuda19getDevicePropertiesEa");

signed char device_count(void) { return (signed char)announced_cards; }

/* An NVIDIA A40, but for its capability. The choice of a kernel asks for nothing else. */
struct cudaDeviceProp *current_properties(void) {
  static struct cudaDeviceProp card;
  strcpy(card.name, "NVIDIA A40");
  card.major = card_major;
  card.minor = card_minor;
  card.warpSize = 32;
  card.multiProcessorCount = 84;
  card.sharedMemPerBlock = 48 * 1024;
  card.sharedMemPerBlockOptin = 99 * 1024;
  card.totalGlobalMem = (size_t)45 << 30;
  return &card;
}

struct cudaDeviceProp *properties_of(signed char device) {
  (void)device;
  return current_properties();
}

int cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) {
  (void)device;
  *flags = 0;
  *active = 0; /* no context, so the engine has no stream to wait for */
  return 0;
}

/* libcaffe2_nvrtc.so needs these symbols to load. The rehearsal never calls them, and a call fails
   with CUDA_ERROR_NO_DEVICE. */
#define NO_DEVICE(function) \
  int function(void) { return 100; }
NO_DEVICE(cuCtxGetCurrent)
NO_DEVICE(cuCtxSetCurrent)
NO_DEVICE(cuDeviceGet)
NO_DEVICE(cuDeviceGetAttribute)
NO_DEVICE(cuDevicePrimaryCtxRetain)
NO_DEVICE(cuFuncGetAttribute)
NO_DEVICE(cuFuncSetAttribute)
NO_DEVICE(cuFuncSetCacheConfig)
NO_DEVICE(cuGetErrorString)
NO_DEVICE(cuLaunchCooperativeKernel)
NO_DEVICE(cuLaunchKernel)
NO_DEVICE(cuLinkAddData_v2)
NO_DEVICE(cuLinkComplete)
NO_DEVICE(cuLinkCreate_v2)
NO_DEVICE(cuModuleGetFunction)
NO_DEVICE(cuModuleLoad)
NO_DEVICE(cuModuleLoadData)
NO_DEVICE(cuModuleLoadDataEx)
NO_DEVICE(cuModuleUnload)
NO_DEVICE(cuOccupancyMaxActiveBlocksPerMultiprocessor)
NO_DEVICE(cuPointerGetAttribute)
NO_DEVICE(cuTensorMapEncodeTiled)
