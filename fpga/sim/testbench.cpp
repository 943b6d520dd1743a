// SPDX-License-Identifier: BSD-3-Clause
// Test bench of any generated accelerator: raw words in, raw words and a JSON file of statistics out.
//
// Words are little-endian and as wide as the ports, whole bytes. Frames go in back to back and come
// out in the same order. The program's exit status is 0 where it wrote everything it was asked for,
// a standing accelerator and broken AXI-stream rules included: the statistics say so. It is 2 where
// it could not do its work.
//
// The build gives INPUT_BYTES, OUTPUT_BYTES (of a word) and CHANNELS (FIFOs with probes, 0 or more).

#include "Vaccelerator.h"
#include "verilated.h"
#if VM_TRACE_FST
#include "verilated_fst_c.h"
#endif

#include <algorithm>
#include <cinttypes>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

namespace {

constexpr uint64_t RESET_CYCLES = 16;
constexpr uint64_t DRAIN_CYCLES = 256;  // after the last word, to see whether others follow
constexpr size_t LISTED_VIOLATIONS = 16;
constexpr int TIME_PER_CYCLE = 10;

// --- ports of any width --------------------------------------------------------------------------

template <size_t BYTES, typename Port>
std::enable_if_t<std::is_integral<Port>::value> put(Port& port, const uint8_t* bytes) {
    uint64_t value = 0;
    for (size_t i = 0; i < BYTES; ++i) value |= static_cast<uint64_t>(bytes[i]) << (8 * i);
    port = static_cast<Port>(value);
}

template <size_t BYTES, std::size_t WORDS>
void put(VlWide<WORDS>& port, const uint8_t* bytes) {
    for (size_t i = 0; i < WORDS; ++i) port[i] = 0;
    for (size_t i = 0; i < BYTES; ++i) port[i / 4] |= static_cast<EData>(bytes[i]) << (8 * (i % 4));
}

template <size_t BYTES, typename Port>
std::enable_if_t<std::is_integral<Port>::value> get(const Port& port, uint8_t* bytes) {
    for (size_t i = 0; i < BYTES; ++i)
        bytes[i] = static_cast<uint8_t>(static_cast<uint64_t>(port) >> (8 * i));
}

template <size_t BYTES, std::size_t WORDS>
void get(const VlWide<WORDS>& port, uint8_t* bytes) {
    for (size_t i = 0; i < BYTES; ++i) bytes[i] = static_cast<uint8_t>(port[i / 4] >> (8 * (i % 4)));
}

#if CHANNELS
template <typename Port>
std::enable_if_t<std::is_integral<Port>::value, bool> any_both(const Port& a, const Port& b) {
    return (a & b) != 0;
}

template <std::size_t WORDS>
bool any_both(const VlWide<WORDS>& a, const VlWide<WORDS>& b) {
    for (size_t i = 0; i < WORDS; ++i)
        if (a[i] & b[i]) return true;
    return false;
}

template <typename Port>
std::vector<uint8_t> bits(const Port& port) {
    std::vector<uint8_t> bytes((CHANNELS + 7) / 8);
    get<(CHANNELS + 7) / 8>(port, bytes.data());
    std::vector<uint8_t> found(CHANNELS);
    for (size_t i = 0; i < CHANNELS; ++i) found[i] = bytes[i / 8] >> (i % 8) & 1;
    return found;
}

template <typename Port>
std::vector<uint32_t> counts(const Port& port) {
    std::vector<uint8_t> bytes(4 * CHANNELS);
    get<4 * CHANNELS>(port, bytes.data());
    std::vector<uint32_t> found(CHANNELS);
    for (size_t i = 0; i < 4 * CHANNELS; ++i)
        found[i / 4] |= static_cast<uint32_t>(bytes[i]) << (8 * (i % 4));
    return found;
}
#endif

// --- stalls --------------------------------------------------------------------------------------

// SplitMix64: small, and the same numbers on every machine.
class Random {
  public:
    explicit Random(uint64_t seed) : state_(seed) {}
    double uniform() {
        uint64_t z = state_ += 0x9e3779b97f4a7c15u;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
        return static_cast<double>((z ^ (z >> 31)) >> 11) * 0x1p-53;
    }

  private:
    uint64_t state_;
};

// A share `probability` of the cycles is stalled, in runs `burst` times as long as those of
// independent draws (burst 1: the draws are independent).
class Stalls {
  public:
    Stalls(double probability, double burst, uint64_t seed)
        : random_(seed), start_(probability / burst), end_((1 - probability) / burst),
          stalled_(probability > 0 && random_.uniform() < probability) {}
    bool next() {
        if (start_ == 0) return false;
        if (random_.uniform() < (stalled_ ? end_ : start_)) stalled_ = !stalled_;
        return stalled_;
    }

  private:
    Random random_;
    double start_, end_;
    bool stalled_;
};

// --- options -------------------------------------------------------------------------------------

struct Options {
    std::string input = "-", output, statistics, trace;
    uint64_t frames = 0, input_words = 0, output_words = 0;  // frames of the run; words of a frame
    uint64_t seed = 0, idle_limit = 100000;
    uint64_t frame_interval = 0;  // cycles over which the words of a frame are spread; 0: no wait
    int64_t reset_at = -1;
    double input_stall = 0, output_stall = 0, burst = 1;
    bool random_start = false;  // registers without a reset begin with random contents
};

[[noreturn]] void fail(const std::string& why) { throw std::runtime_error(why); }

uint64_t whole(const std::string& name, const char* text) {
    char* end = nullptr;
    const uint64_t value = std::strtoull(text, &end, 10);
    if (end == text || *end) fail(name + " is " + text + ": expected a whole number");
    return value;
}

double number(const std::string& name, const char* text) {
    char* end = nullptr;
    const double value = std::strtod(text, &end);
    if (end == text || *end || !std::isfinite(value)) fail(name + " is " + text + ": expected a number");
    return value;
}

Options read_options(int count, char** words) {
    Options options;
    for (int i = 1; i < count; i += 2) {
        const std::string name = words[i];
        if (i + 1 == count) fail(name + " has no value");
        const char* value = words[i + 1];
        if (name == "--input") options.input = value;
        else if (name == "--output") options.output = value;
        else if (name == "--statistics") options.statistics = value;
        else if (name == "--trace") options.trace = value;
        else if (name == "--frames") options.frames = whole(name, value);
        else if (name == "--input-words") options.input_words = whole(name, value);
        else if (name == "--output-words") options.output_words = whole(name, value);
        else if (name == "--seed") options.seed = whole(name, value);
        else if (name == "--idle-limit") options.idle_limit = whole(name, value);
        else if (name == "--frame-interval") options.frame_interval = whole(name, value);
        else if (name == "--reset-at") options.reset_at = static_cast<int64_t>(whole(name, value));
        else if (name == "--input-stall") options.input_stall = number(name, value);
        else if (name == "--output-stall") options.output_stall = number(name, value);
        else if (name == "--burst") options.burst = number(name, value);
        else if (name == "--random-start") options.random_start = whole(name, value) != 0;
        else fail("unknown option " + name);
    }
    if (options.output.empty() || options.statistics.empty()) fail("--output and --statistics are needed");
    if (!options.frames || !options.input_words || !options.output_words)
        fail("--frames, --input-words and --output-words must be 1 or more");
    return options;
}

std::vector<uint8_t> read_words(const Options& options) {
    const size_t wanted = options.frames * options.input_words * INPUT_BYTES;
    std::FILE* file = options.input == "-" ? stdin : std::fopen(options.input.c_str(), "rb");
    if (!file) fail("cannot read " + options.input);
    std::vector<uint8_t> bytes(wanted + 1);  // one more, to see whether there is more
    const size_t got = std::fread(bytes.data(), 1, wanted + 1, file);
    if (file != stdin) std::fclose(file);
    if (got != wanted)
        fail(options.input + " does not hold " + std::to_string(wanted) + " bytes, those of " +
             std::to_string(options.frames) + " frames");
    bytes.resize(wanted);
    return bytes;
}

// --- the run -------------------------------------------------------------------------------------

class Bench {
  public:
    explicit Bench(const Options& options)
        : options_(options), input_(read_words(options)),
          scores_(options.frames * options.output_words * OUTPUT_BYTES),
          frame_cycles_(options.frames),
          input_stalls_(options.input_stall, options.burst, 2 * options.seed),
          output_stalls_(options.output_stall, options.burst, 2 * options.seed + 1) {
        context_.randSeed(static_cast<int>(options.seed % 0x7fffffff) + 1);
        context_.randReset(options.random_start ? 2 : 0);
        context_.timeunit(-9);
        context_.timeprecision(-9);
#if VM_TRACE_FST
        context_.traceEverOn(true);
#endif
        top_ = std::make_unique<Vaccelerator>(&context_);
#if VM_TRACE_FST
        if (!options.trace.empty()) {
            top_->trace(&trace_, 99);
            trace_.open(options.trace.c_str());
            if (!trace_.isOpen()) fail("cannot write " + options.trace);
        }
#else
        if (!options.trace.empty()) fail("built without --trace");
#endif
    }

    void run() {
        reset();
        const uint64_t words = options_.frames * options_.output_words;
        while (taken_ < words && idle_ < options_.idle_limit) {
            if (static_cast<int64_t>(cycle_) == options_.reset_at) interrupt();
            step();
        }
        stands_ = taken_ < words;
        if (!stands_) drain();
#if VM_TRACE_FST
        if (trace_.isOpen()) trace_.close();
#endif
        top_->final();
    }

    void write() const {
        write_file(options_.output, scores_.data(), taken_ / options_.output_words * frame_bytes());
        const std::string text = statistics();
        write_file(options_.statistics, text.data(), text.size());
    }

  private:
    size_t frame_bytes() const { return options_.output_words * OUTPUT_BYTES; }

    void edge(int clk) {
        top_->clk = clk;
        top_->eval();
#if VM_TRACE_FST
        if (trace_.isOpen()) trace_.dump(time_);
        time_ += TIME_PER_CYCLE / 2;
#endif
    }

    void reset() {
        top_->rst_n = 0;
        top_->s_axis_tvalid = 0;
        top_->m_axis_tready = 0;
        for (uint64_t i = 0; i < RESET_CYCLES; ++i) {
            edge(0);
            edge(1);
        }
        top_->rst_n = 1;
        offered_ = false;
        waiting_ = false;
        idle_ = 0;
    }

    // A frame of which some score is still missing is sent again from its first word.
    void interrupt() {
        const uint64_t frame = taken_ / options_.output_words;
        reset_frame_ = static_cast<int64_t>(frame);
        reset_sent_ = sent_;
        taken_ = frame * options_.output_words;
        sent_ = frame * options_.input_words;
        first_sent_ = sent_;
        first_cycle_ = cycle_;
        cycle_ += RESET_CYCLES;
        reset();
    }

    // The first cycle at which the next word may be offered.
    uint64_t due() const {
        if (!options_.frame_interval) return 0;
        return first_cycle_ + (sent_ - first_sent_) * options_.frame_interval / options_.input_words;
    }

    void step() {
        // An offered word stays until it is taken; only the next one may be late.
        const bool stall = input_stalls_.next();
        if (!offered_ && sent_ < options_.frames * options_.input_words && !stall && cycle_ >= due()) {
            put<INPUT_BYTES>(top_->s_axis_tdata, &input_[sent_ * INPUT_BYTES]);
            offered_ = true;
        }
        top_->s_axis_tvalid = offered_;
        top_->m_axis_tready = !output_stalls_.next();
        edge(0);
        const bool in = offered_ && top_->s_axis_tready;
        const bool out = top_->m_axis_tvalid && top_->m_axis_tready;
        check();
        bool moves = in || out;
#if CHANNELS
        moves = moves || any_both(top_->probe_in_valid, top_->probe_in_ready) ||
                any_both(top_->probe_out_valid, top_->probe_out_ready);
#endif
        if (in) {
            if (first_in_ < 0) first_in_ = static_cast<int64_t>(cycle_);
            ++sent_;
            offered_ = false;
        }
        if (out) take();
        // A word that is not due yet, or a stall, is no standstill of the accelerator.
        const bool awaited = offered_ || sent_ == options_.frames * options_.input_words;
        if (moves) idle_ = 0;
        else if (awaited && top_->m_axis_tready) ++idle_;
        if (idle_ < options_.idle_limit) edge(1);  // else keep the signals as they stand
        ++cycle_;
    }

    void take() {
        if (first_out_ < 0) first_out_ = static_cast<int64_t>(cycle_);
        get<OUTPUT_BYTES>(top_->m_axis_tdata, &scores_[taken_ * OUTPUT_BYTES]);
        if (++taken_ % options_.output_words) return;
        const uint64_t frame = taken_ / options_.output_words;
        frame_cycles_[frame - 1] = cycle_;
        const uint64_t tick = std::max<uint64_t>(1, options_.frames / 200);
        if (frame % tick == 0 || frame == options_.frames) {
            std::printf("%" PRIu64 "\n", frame);
            std::fflush(stdout);
        }
    }

    // The rules of an AXI stream's source.
    void check() {
        const bool valid = top_->m_axis_tvalid, last = top_->m_axis_tlast;
        uint8_t data[OUTPUT_BYTES];
        get<OUTPUT_BYTES>(top_->m_axis_tdata, data);
        if (waiting_ && !valid) violation("TVALID fell before TREADY");
        else if (waiting_ && std::memcmp(data, data_, OUTPUT_BYTES)) violation("TDATA changed before TREADY");
        else if (waiting_ && last != last_) violation("TLAST changed before TREADY");
        if (valid && top_->m_axis_tready) {
            const bool due = (taken_ + 1) % options_.output_words == 0;
            if (last != due) violation(last ? "TLAST before a frame's last score" : "no TLAST at a frame's last score");
        }
        waiting_ = valid && !top_->m_axis_tready;
        last_ = last;
        std::memcpy(data_, data, OUTPUT_BYTES);
    }

    void violation(const char* rule) {
        ++violations_;
        if (listed_.size() < LISTED_VIOLATIONS) listed_.emplace_back(cycle_, rule);
    }

    void drain() {
        top_->s_axis_tvalid = 0;
        top_->m_axis_tready = 1;
        for (uint64_t i = 0; i < DRAIN_CYCLES; ++i) {
            edge(0);
            if (top_->m_axis_tvalid) {
                violation("a word after the last frame's last score");
                return;
            }
            edge(1);
        }
    }

    static void write_file(const std::string& path, const void* data, size_t bytes) {
        std::FILE* file = std::fopen(path.c_str(), "wb");
        const bool written = file && std::fwrite(data, 1, bytes, file) == bytes;
        if ((file && std::fclose(file)) || !written) fail("cannot write " + path);
    }

    template <typename Values>
    static std::string list(const Values& values, size_t count) {
        std::string text = "[";
        for (size_t i = 0; i < count; ++i) text += (i ? ", " : "") + std::to_string(values[i]);
        return text + "]";
    }

    std::string statistics() const {
        const auto line = [](const char* name, int64_t value) {
            return std::string("  \"") + name + "\": " + std::to_string(value) + ",\n";
        };
        std::string text = "{\n";
        text += line("cycles", cycle_) + line("sent", sent_) + line("taken", taken_);
        text += line("first_in", first_in_) + line("first_out", first_out_);
        text += line("reset_frame", reset_frame_) + line("reset_sent", reset_sent_);
        text += std::string("  \"stands\": ") + (stands_ ? "true" : "false") + ",\n";
        text += "  \"frame_cycles\": " + list(frame_cycles_, taken_ / options_.output_words) + ",\n";
#if CHANNELS
        text += "  \"in_valid\": " + list(bits(top_->probe_in_valid), CHANNELS) + ",\n";
        text += "  \"in_ready\": " + list(bits(top_->probe_in_ready), CHANNELS) + ",\n";
        text += "  \"out_valid\": " + list(bits(top_->probe_out_valid), CHANNELS) + ",\n";
        text += "  \"out_ready\": " + list(bits(top_->probe_out_ready), CHANNELS) + ",\n";
        text += "  \"count\": " + list(counts(top_->probe_count), CHANNELS) + ",\n";
        text += "  \"max_count\": " + list(counts(top_->probe_max_count), CHANNELS) + ",\n";
#endif
        text += line("violations", violations_);
        text += "  \"listed\": [";
        for (size_t i = 0; i < listed_.size(); ++i)
            text += std::string(i ? ", " : "") + "[" + std::to_string(listed_[i].first) + ", \"" +
                    listed_[i].second + "\"]";
        return text + "]\n}\n";
    }

    const Options options_;
    const std::vector<uint8_t> input_;
    std::vector<uint8_t> scores_;
    std::vector<uint64_t> frame_cycles_;
    Stalls input_stalls_, output_stalls_;
    VerilatedContext context_;
    std::unique_ptr<Vaccelerator> top_;
#if VM_TRACE_FST
    VerilatedFstC trace_;
    uint64_t time_ = 0;
#endif
    uint64_t cycle_ = 0, idle_ = 0, sent_ = 0, taken_ = 0, first_sent_ = 0, first_cycle_ = 0;
    int64_t first_in_ = -1, first_out_ = -1, reset_frame_ = -1, reset_sent_ = -1;
    bool offered_ = false, waiting_ = false, last_ = false, stands_ = false;
    uint8_t data_[OUTPUT_BYTES] = {};
    uint64_t violations_ = 0;
    std::vector<std::pair<uint64_t, std::string>> listed_;
};

}  // namespace

int main(int count, char** words) {
    try {
        Bench bench(read_options(count, words));
        bench.run();
        bench.write();
    } catch (const std::exception& error) {
        std::fprintf(stderr, "%s\n", error.what());
        return 2;
    }
    return 0;
}
