// The log: one line a call, and settings from the environment.
#include "stub.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

static FILE *file;
static bool opened, on = true;

static void open_file(void) {
    const char *path = getenv("CUDA_STUB_LOG");
    opened = true;
    if (path && *path) file = fopen(path, "a");
}

bool stub_logs(void) {
    if (!opened) open_file();
    return file && on;
}

void stub_log(const char *format, ...) {
    if (!stub_logs()) return;
    va_list arguments;
    va_start(arguments, format);
    flockfile(file);  // or lines of two threads mix
    vfprintf(file, format, arguments);
    fputc('\n', file);
    funlockfile(file);
    va_end(arguments);
}

// Switch the log off while times are measured, and on again.
void stub_log_to(bool wanted) { on = wanted; }

void stub_flush(void) {
    if (file) fflush(file);
}

// Write a line of the caller's: where in a test a part of the log begins.
void stub_note(const char *text) { stub_log("note %s", text); }

long long stub_setting(const char *name, long long otherwise) {
    const char *text = getenv(name);
    return text && *text ? atoll(text) : otherwise;
}
