//! The ways between devices: how long what is sent takes, by distance, room and luck.
//!
//! Spec: `protocol/spec/simulation.md`, "Network".

use std::collections::BTreeMap;

use kith_object::key::Rng;
use kith_object::time::{Span, Time};

use crate::plan::{Path, Plan};

/// Bytes that go in a packet.
const PACKET_BYTES: u64 = 1400;
/// What a message takes besides: heads of TCP, cipher and muxer.
const HEAD_BYTES: u64 = 90;
/// Packets of one message whose loss is rolled one by one; beyond, losses are as many as is to be expected.
const ROLLED_MAX: u64 = 64;
/// A lost packet is sent again after at least so long.
const AGAIN_MS: u64 = 200;
/// Packets under way on a connection that loses some: by the usual law, 1.22 divided by the root of the loss, in thousandths.
const WINDOW: u64 = 1220;

/// More than that is never lost, of a million, in whatever storms.
const LOSS_MAX: u64 = 500_000;
/// What takes longer is late.
const LATE: Span = Span::from_secs(2);

/// Moments in thousandths of a millisecond: of a fast line many messages fit one millisecond.
type Micros = u64;

/// The ways of a run.
#[derive(Debug)]
pub struct Network {
    site_of: Vec<usize>,
    inner: Vec<Path>,
    rates: Vec<(Option<u64>, Option<u64>)>,
    paths: BTreeMap<(usize, usize), Path>,
    path: Path,
    /// Packets lost besides, of a million.
    storm: u64,
    /// When each site's line out, and in, is free.
    free: Vec<(Micros, Micros)>,
    /// When each connection that loses packets has room again, and when its last message arrives.
    pipes: BTreeMap<(usize, usize), (Micros, Time)>,
    /// When the last message between two devices arrives that is late.
    late: BTreeMap<(usize, usize), Time>,
    /// Bytes that each device sent and got, by what they were for.
    pub sent: Vec<BTreeMap<&'static str, u64>>,
    /// See [`Network::sent`].
    pub got: Vec<BTreeMap<&'static str, u64>>,
    /// Messages in all.
    pub messages: u64,
    /// Packets that were sent again.
    pub lost: u64,
}

impl Network {
    /// That of a plan, at rest.
    pub fn new(plan: &Plan) -> Self {
        Self {
            site_of: plan.devices.iter().map(|device| device.site).collect(),
            inner: plan.sites.iter().map(|site| site.inner).collect(),
            rates: plan.sites.iter().map(|site| (site.up, site.down)).collect(),
            paths: plan.paths.iter().copied().collect(),
            path: plan.path,
            storm: 0,
            free: vec![(0, 0); plan.sites.len()],
            pipes: BTreeMap::new(),
            late: BTreeMap::new(),
            sent: vec![BTreeMap::new(); plan.devices.len()],
            got: vec![BTreeMap::new(); plan.devices.len()],
            messages: 0,
            lost: 0,
        }
    }

    /// So many more packets of a million are lost everywhere from now on, or fewer again.
    pub fn storm(&mut self, more: u64, fewer: u64) {
        self.storm = (self.storm + more).saturating_sub(fewer);
    }

    fn path(&self, from: usize, to: usize) -> Path {
        let path = self.path_at_rest(from, to);
        Path {
            loss: (path.loss + self.storm).min(LOSS_MAX),
            ..path
        }
    }

    fn path_at_rest(&self, from: usize, to: usize) -> Path {
        let site = |device: usize| self.site_of.get(device).copied().unwrap_or(0);
        let (one, other) = (site(from), site(to));
        if one == other {
            return self.inner.get(one).copied().unwrap_or(self.path);
        }
        let pair = (one.min(other), one.max(other));
        self.paths.get(&pair).copied().unwrap_or(self.path)
    }

    /// How long one way takes now.
    pub fn latency(&self, from: usize, to: usize, rng: &mut Rng) -> u64 {
        let (least, most) = self.path(from, to).latency;
        least + rng.below(most.saturating_sub(least) + 1)
    }

    /// When a message that is sent now is written, and when it arrives. What is sent first on a connection arrives first: all goes over streams.
    pub fn send(
        &mut self,
        now: Time,
        (from, to): (usize, usize),
        len: usize,
        purpose: &'static str,
        rng: &mut Rng,
    ) -> (Time, Time) {
        let path = self.path(from, to);
        let begin = now.0 * 1000;
        let (packets, mut written, mut through) = self.occupy(begin, (from, to), len, purpose);
        let latency = self.latency(from, to, rng);
        let mut late = 0;
        let pipe = self.pipes.entry((from, to)).or_default();
        if path.loss > 0 {
            let round = 2 * latency.max(1);
            let lost = if packets <= ROLLED_MAX {
                (0..packets)
                    .filter(|_| rng.below(1_000_000) < path.loss)
                    .count() as u64
            } else {
                packets * path.loss / 1_000_000
            };
            self.lost += lost;
            if lost > 0 {
                late = round.max(AGAIN_MS);
            }
            // What the usual congestion control lets through.
            let window = WINDOW * 1_000_000 / isqrt(path.loss * 1_000_000).max(1);
            let per_packet = round * 1_000_000 / window.max(1000);
            pipe.0 = pipe.0.max(begin) + packets * per_packet;
            written = written.max(pipe.0);
            through = through.max(pipe.0);
        }
        let arrives = Time(through.div_ceil(1000) + latency + late).max(pipe.1);
        pipe.1 = arrives;
        if arrives.since(now) > LATE {
            let pair = (from.min(to), from.max(to));
            let late = self.late.entry(pair).or_default();
            *late = arrives.max(*late);
        }
        (Time(written.div_ceil(1000)), arrives)
    }

    /// A message goes out of which nobody takes notice: it takes its room on the lines, and no more is to be known of it.
    pub fn send_in_vain(
        &mut self,
        now: Time,
        way: (usize, usize),
        len: usize,
        purpose: &'static str,
    ) {
        self.occupy(now.0 * 1000, way, len, purpose);
    }

    /// How long one way takes at least.
    pub fn least_latency(&self, from: usize, to: usize) -> Span {
        Span(self.path_at_rest(from, to).latency.0)
    }

    /// Packets of a message, when it is through the line out of its site, and through that into the other.
    fn occupy(
        &mut self,
        begin: Micros,
        (from, to): (usize, usize),
        len: usize,
        purpose: &'static str,
    ) -> (u64, Micros, Micros) {
        let len = len as u64;
        let packets = len.div_ceil(PACKET_BYTES).max(1);
        let bytes = len + HEAD_BYTES + packets * 40;
        self.messages += 1;
        self.count((from, to), bytes, purpose);
        let mut written = begin;
        let site = |device: usize| self.site_of.get(device).copied().unwrap_or(0);
        let (here, there) = (site(from), site(to));
        let mut through = begin;
        if here != there {
            let micros = |rate: u64| bytes * 8 * 1_000_000 / rate.max(1);
            let up = self.rates.get(here).and_then(|rates| rates.0);
            if let (Some(rate), Some(free)) = (up, self.free.get_mut(here)) {
                free.0 = free.0.max(begin) + micros(rate);
                written = free.0;
                through = written;
            }
            let down = self.rates.get(there).and_then(|rates| rates.1);
            if let (Some(rate), Some(free)) = (down, self.free.get_mut(there)) {
                free.1 = free.1.max(through) + micros(rate);
                through = free.1;
            }
        }
        (packets, written, through)
    }

    /// Counts bytes that went from one device to another.
    pub fn count(&mut self, (from, to): (usize, usize), bytes: u64, purpose: &'static str) {
        for (counts, device) in [(&mut self.sent, from), (&mut self.got, to)] {
            if let Some(counts) = counts.get_mut(device) {
                *counts.entry(purpose).or_default() += bytes;
            }
        }
    }

    /// When all has arrived between these two that took long; long ago if nothing did.
    pub fn late(&self, one: usize, other: usize) -> Time {
        let pair = (one.min(other), one.max(other));
        self.late.get(&pair).copied().unwrap_or_default()
    }

    /// A connection has ended: what was on its way is lost.
    pub fn cut(&mut self, one: usize, other: usize) {
        self.pipes.remove(&(one, other));
        self.pipes.remove(&(other, one));
    }
}

fn isqrt(number: u64) -> u64 {
    let mut root = 0;
    let mut bit = 1 << 31;
    while bit > 0 {
        let next: u64 = root + bit;
        if next
            .checked_mul(next)
            .is_some_and(|square| square <= number)
        {
            root = next;
        }
        bit >>= 1;
    }
    root
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::file;

    fn network(text: &str) -> Network {
        Network::new(&file::read("test", text).unwrap())
    }

    fn two(site: &str, between: &str) -> String {
        format!(
            "about = 'x'\nduration = '1h'\n[between]\n{between}\n[[site]]\nname = 'one'\n{site}\n[[site]]\nname = 'two'\n\
             [[device]]\nname = 'a'\nsite = 'one'\nadmin = true\n[[device]]\nname = 'b'\nsite = 'two'\n"
        )
    }

    /// Milliseconds until so many messages of that length have arrived, all handed over at once.
    fn takes(network: &mut Network, count: u64, len: usize) -> u64 {
        let mut rng = Rng::from_seed([7; 32]);
        let begin = Time(1_000_000);
        let mut last = begin;
        for _ in 0..count {
            let (written, arrives) = network.send(begin, (0, 1), len, "test", &mut rng);
            assert!(arrives >= last && arrives >= written && written >= begin);
            last = arrives;
        }
        last.0 - begin.0
    }

    #[test]
    fn a_line_carries_what_it_carries() {
        // 8 Mbit/s are a megabyte a second.
        let mut network = network(&two("up = '8Mbit/s'", "latency = '10ms'"));
        let took = takes(&mut network, 100, 100_000);
        assert!((10_000..11_000).contains(&took), "{took}");
        // In the other direction nothing is in the way.
        let mut rng = Rng::from_seed([1; 32]);
        let (_, arrives) = network.send(Time(5), (1, 0), 1 << 20, "test", &mut rng);
        assert_eq!(arrives, Time(15));
    }

    #[test]
    fn loss_slows_down_by_the_usual_law() {
        // 1.22 / sqrt(0.01) packets of 1,400 bytes in each round trip of 100 ms: 171 kB/s.
        let mut network = network(&two("", "latency = '50ms'\nloss = '1%'"));
        let took = takes(&mut network, 20, 171_000);
        assert!((18_000..23_000).contains(&took), "{took}");
        assert!(network.lost > 10, "{}", network.lost);
        // Ten times less is 3.2 times quicker.
        let mut better = self::network(&two("", "latency = '50ms'\nloss = '0.1%'"));
        let less = takes(&mut better, 20, 171_000);
        assert!((took * 10 / less).abs_diff(32) < 5, "{took} {less}");
    }

    #[test]
    fn roots_are_right() {
        for number in [0, 1, 3, 4, 99, 100, 101, 1 << 40, (1 << 40) - 1] {
            let root = isqrt(number);
            assert!(root * root <= number && (root + 1) * (root + 1) > number);
        }
    }
}
