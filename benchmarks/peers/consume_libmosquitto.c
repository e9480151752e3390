/* A C client on libmosquitto: its callback counts. The floor that a Python client is compared with.
 * It acknowledges before the callback runs. Reads the variables that benchmarks/meter.py describes. */
#include <mosquitto.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

static long count, warmup, messages;
static double user, sys, wall;

static long number(const char *name, long otherwise) {
    const char *value = getenv(name);
    return value ? atol(value) : otherwise;
}

static void now(double *u, double *s, double *w) {
    struct rusage usage;
    struct timespec clock;
    getrusage(RUSAGE_SELF, &usage);
    clock_gettime(CLOCK_MONOTONIC, &clock);
    *u = usage.ru_utime.tv_sec + usage.ru_utime.tv_usec / 1e6;
    *s = usage.ru_stime.tv_sec + usage.ru_stime.tv_usec / 1e6;
    *w = clock.tv_sec + clock.tv_nsec / 1e9;
}

static void report(void) {
    double u, s, w;
    now(&u, &s, &w);
    const char *path = getenv("BENCH_RESULT");
    FILE *out = path ? fopen(path, "w") : stdout;
    double per = 1e6 / messages;
    fprintf(out, "{\"messages\": %ld, \"user_us\": %f, \"system_us\": %f, \"cpu_us\": %f, \"wall_us\": %f}\n", messages,
            (u - user) * per, (s - sys) * per, (u - user + s - sys) * per, (w - wall) * per);
    fclose(out);
    exit(0);
}

static void on_message(struct mosquitto *client, void *data, const struct mosquitto_message *message) {
    double ignored;
    count++;
    if (count == warmup) now(&user, &sys, &wall);
    else if (count == warmup + 1) now(&ignored, &ignored, &wall);
    else if (count == warmup + messages) report();
}

static void on_connect(struct mosquitto *client, void *data, int code) {
    mosquitto_subscribe(client, NULL, "sensors/+/data", (int)number("BENCH_QOS", 0));
}

int main(void) {
    warmup = number("BENCH_WARMUP", 1000);
    messages = number("BENCH_MESSAGES", 100000);
    mosquitto_lib_init();
    struct mosquitto *client = mosquitto_new(NULL, true, NULL);
    const char *variant = getenv("BENCH_VARIANT");
    if (variant && !strcmp(variant, "v5")) mosquitto_int_option(client, MOSQ_OPT_PROTOCOL_VERSION, MQTT_PROTOCOL_V5);
    mosquitto_connect_callback_set(client, on_connect);
    mosquitto_message_callback_set(client, on_message);
    if (mosquitto_connect(client, "127.0.0.1", (int)number("BENCH_PORT", 1883), 60)) return 1;
    return mosquitto_loop_forever(client, -1, 1);
}
