// AMX written out in plain C++, for processors without it: what Intel's manual says (SDM, volume 2: LDTILECFG, TILELOADD,
// TILESTORED, TILEZERO, TDPBSUD; volume 1, 18.2: palette 1), under the names of the compiler's intrinsics. Included before
// a source; with it the source believes that it is compiled for AMX. Where a processor would raise a fault, numbers
// become nonsense and a line says why, so that a test fails and the others go on.
//
// TWIN_REFUSES: the system lends no tiles. TWIN_LIES: activations count as unsigned.
#pragma once
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstring>

namespace twin {

struct Config { uint8_t palette, start, reserved[14]; uint16_t bytes[16]; uint8_t rows[16]; };
struct Tile { uint8_t row[16][64]; };
static thread_local Config config;  // all zero: no tiles
static thread_local Tile tiles[8];
static bool lent = false;

static void fault(int tile, const char* why) {
  fprintf(stderr, "tiles: %s\n", why);
  memset(tiles[tile].row, 0x55, sizeof(Tile));
}

static long ask(long call, long what, long feature) {
  bool right = call == SYS_arch_prctl && what == 0x1023 && feature == 18;
#ifdef TWIN_REFUSES
  right = false;
#endif
  lent |= right;
  return right ? 0 : -1;
}

static bool usable(int t) {
  if (lent && config.palette == 1 && config.rows[t] && config.bytes[t]) return true;
  fault(t, "not permitted, or no shape");
  return false;
}

static void load_config(const void* from) {
  Config wanted;
  memcpy(&wanted, from, 64);
  memset(tiles, 0, sizeof tiles);
  bool fine = wanted.palette <= 1 && !wanted.start;
  for (uint8_t b : wanted.reserved) fine &= !b;
  for (int t = 0; t < 16; t++) {
    fine &= t < 8 ? wanted.rows[t] <= 16 && wanted.bytes[t] <= 64 : !wanted.rows[t] && !wanted.bytes[t];
    fine &= !wanted.rows[t] == !wanted.bytes[t];
  }
  if (!fine) fprintf(stderr, "tiles: a configuration that no processor takes\n");
  config = fine && wanted.palette ? wanted : Config{};
}

static void store_config(void* to) { memcpy(to, &config, 64); }

static void zero(int t) { if (usable(t)) memset(&tiles[t], 0, sizeof(Tile)); }

static void load(int t, const void* from, int64_t stride) {  // what lies outside the shape becomes zero
  if (!usable(t)) return;
  memset(&tiles[t], 0, sizeof(Tile));
  for (int m = 0; m < config.rows[t]; m++) memcpy(tiles[t].row[m], (const uint8_t*)from + m * stride, config.bytes[t]);
}

static void store(int t, void* to, int64_t stride) {
  usable(t);
  for (int m = 0; m < (config.rows[t] ? config.rows[t] : 16); m++) memcpy((uint8_t*)to + m * stride, tiles[t].row[m], config.bytes[t] ? config.bytes[t] : 64);
}

template <class A, class B> static void dots(int c, int a, int b) {
  if (!usable(c) || !usable(a) || !usable(b)) return;
  if (c == a || c == b || a == b) return fault(c, "a tile twice");
  if (config.rows[c] != config.rows[a] || config.bytes[c] != config.bytes[b] || config.bytes[a] != 4 * config.rows[b] || config.bytes[c] % 4)
    return fault(c, "shapes that do not fit");
  for (int m = 0; m < config.rows[c]; m++)
    for (int n = 0; n < config.bytes[c] / 4; n++) {
      int32_t sum;
      memcpy(&sum, tiles[c].row[m] + 4 * n, 4);
      for (int k = 0; k < config.rows[b]; k++)
        for (int i = 0; i < 4; i++) sum += (int32_t)(A)tiles[a].row[m][4 * k + i] * (int32_t)(B)tiles[b].row[k][4 * n + i];
      memcpy(tiles[c].row[m] + 4 * n, &sum, 4);
    }
}

}  // namespace twin

extern "C" void* twin_config() { return &twin::config; }  // of this thread


#undef _tile_loadconfig
#undef _tile_storeconfig
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbssd
#undef _tile_dpbsud
#undef _tile_dpbusd
#undef _tile_dpbuud
#define _tile_loadconfig(from) twin::load_config(from)
#define _tile_storeconfig(to) twin::store_config(to)
#define _tile_zero(t) twin::zero(t)
#define _tile_loadd(t, from, stride) twin::load(t, from, stride)
#define _tile_stored(t, to, stride) twin::store(t, to, stride)
#define _tile_dpbssd(c, a, b) twin::dots<int8_t, int8_t>(c, a, b)
#ifdef TWIN_LIES
#define _tile_dpbsud(c, a, b) twin::dots<uint8_t, uint8_t>(c, a, b)
#else
#define _tile_dpbsud(c, a, b) twin::dots<int8_t, uint8_t>(c, a, b)
#endif
#define _tile_dpbusd(c, a, b) twin::dots<uint8_t, int8_t>(c, a, b)
#define _tile_dpbuud(c, a, b) twin::dots<uint8_t, uint8_t>(c, a, b)
#define syscall(call, what, feature) twin::ask(call, what, feature)
#undef __AMX_TILE__
#undef __AMX_INT8__
#define __AMX_TILE__ 1
#define __AMX_INT8__ 1
