//! The ways between devices: how long what is sent takes, by distance, room and luck.
//!
//! Spec: `protocol/spec/simulation.md`, "Network".

use std::collections::BTreeMap;

use kith_object::key::Rng;
use kith_object::time::{Span, Time};

use crate::plan::{Access, Bursts, LineHours, Path, Plan};

/// Of a packet's bytes, what its heads take; and what they take that is counted: IP and TCP. The rest is room for tunnels and options.
const HEADS_BYTES: u64 = 100;
const PACKET_HEAD_BYTES: u64 = 40;
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
const MILLION: u64 = 1_000_000;
/// What takes longer is late.
const LATE: Span = Span::from_secs(2);
const DAY_MINUTES: u64 = 24 * 60;

/// Moments in thousandths of a millisecond: of a fast line many messages fit one millisecond.
type Micros = u64;

/// What bytes are sent for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Blocks, and asking for them.
    Blocks,
    /// Comparing digests, and entries.
    Sync,
    /// What is told to all.
    Gossip,
    /// Questions and answers of the DHT.
    Dht,
    /// What goes between two others.
    Relay,
}

impl Purpose {
    const ALL: [Self; 5] = [
        Self::Blocks,
        Self::Sync,
        Self::Gossip,
        Self::Dht,
        Self::Relay,
    ];

    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Blocks => "blocks",
            Self::Sync => "sync",
            Self::Gossip => "gossip",
            Self::Dht => "dht",
            Self::Relay => "relay",
        }
    }
}

/// Bytes by purpose.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counts([u64; Purpose::ALL.len()]);

impl Counts {
    fn add(&mut self, bytes: u64, purpose: Purpose) {
        if let Some(count) = self.0.get_mut(purpose as usize) {
            *count += bytes;
        }
    }

    /// Those that are not nothing, in order of their names.
    pub fn named(&self) -> Vec<(&'static str, u64)> {
        let counts = Purpose::ALL
            .iter()
            .map(|purpose| purpose.name())
            .zip(self.0);
        let mut named: Vec<_> = counts.filter(|(_, bytes)| *bytes > 0).collect();
        named.sort_unstable();
        named
    }
}

/// From one device to another, maybe through a third.
#[derive(Debug, Clone, Copy)]
pub struct Way {
    /// Who sends.
    pub from: usize,
    /// Who gets it.
    pub to: usize,
    /// Who relays.
    pub via: Option<usize>,
}

/// Where a device is, as a place between which ways lead.
#[derive(Debug)]
struct SiteLines {
    rates: (Option<u64>, Option<u64>),
    access: Access,
    hours: Vec<LineHours>,
    inner: Path,
    /// When its line out, and in, is free.
    free: (Micros, Micros),
}

impl SiteLines {
    fn now(&self, minute: u64) -> Option<&LineHours> {
        let mut hours = self.hours.iter();
        hours.find(|line| (line.hours.0..line.hours.1).contains(&minute))
    }
}

/// What is to be known of a connection in one direction.
#[derive(Debug, Clone, Copy, Default)]
struct Pipe {
    /// When one that loses packets has room again.
    room: Micros,
    /// When the last message arrives.
    last: Time,
    /// When the last one arrives that is late.
    late: Time,
}

/// Whether more is lost now on a path, and until when that is so.
#[derive(Debug, Clone, Copy)]
struct Weather {
    bad: bool,
    until: Time,
}

/// What a message met on one part of its way.
struct Leg {
    packets: u64,
    bytes: u64,
    written: Micros,
    through: Micros,
    latency: u64,
    /// Held up by packets that were lost or overtaken.
    held: u64,
    per_packet: Micros,
}

/// The ways of a run.
#[derive(Debug)]
pub struct Network {
    midnight: Time,
    site_of: Vec<usize>,
    sites: Vec<SiteLines>,
    paths: BTreeMap<(usize, usize), Path>,
    path: Path,
    /// Packets lost besides, of a million.
    storm: u64,
    /// By pair of sites, where losses come in bursts.
    weather: BTreeMap<(usize, usize), Weather>,
    /// By who sends, and to whom.
    pipes: Vec<BTreeMap<usize, Pipe>>,
    /// Bytes that each device sent.
    pub sent: Vec<Counts>,
    /// Bytes that each device got.
    pub got: Vec<Counts>,
    /// Bytes that each sent and got over a line that is paid for.
    pub metered: Vec<u64>,
    /// Messages in all.
    pub messages: u64,
    /// Packets that were sent again.
    pub lost: u64,
}

impl Network {
    /// That of a plan, at rest; the run begins at midnight.
    pub fn new(plan: &Plan, midnight: Time) -> Self {
        let devices = plan.devices.len();
        let sites = plan.sites.iter().map(|site| SiteLines {
            rates: (site.up, site.down),
            access: site.access,
            hours: site.hours.clone(),
            inner: site.inner,
            free: (0, 0),
        });
        Self {
            midnight,
            site_of: plan.devices.iter().map(|device| device.site).collect(),
            sites: sites.collect(),
            paths: plan.paths.iter().copied().collect(),
            path: plan.path,
            storm: 0,
            weather: BTreeMap::new(),
            pipes: vec![BTreeMap::new(); devices],
            sent: vec![Counts::default(); devices],
            got: vec![Counts::default(); devices],
            metered: vec![0; devices],
            messages: 0,
            lost: 0,
        }
    }

    /// So many more packets of a million are lost everywhere from now on, or fewer again.
    pub fn storm(&mut self, more: u64, fewer: u64) {
        self.storm = (self.storm + more).saturating_sub(fewer);
    }

    /// Where a device is.
    pub fn site(&self, device: usize) -> usize {
        self.site_of.get(device).copied().unwrap_or(0)
    }

    fn at_rest(&self, one: usize, other: usize) -> Path {
        if one == other {
            return self.sites.get(one).map_or(self.path, |site| site.inner);
        }
        let pair = (one.min(other), one.max(other));
        self.paths.get(&pair).copied().unwrap_or(self.path)
    }

    fn hours(&self, site: usize, now: Time) -> Option<&LineHours> {
        let site = self.sites.get(site).filter(|site| !site.hours.is_empty())?;
        site.now(now.since(self.midnight).0 / 60_000 % DAY_MINUTES)
    }

    /// What lies between two sites now.
    fn path(&mut self, now: Time, (here, there): (usize, usize), rng: &mut Rng) -> Path {
        let mut path = self.at_rest(here, there);
        if here != there {
            for site in [here, there] {
                if let Some(lines) = self.sites.get(site) {
                    path = path.over(lines.access);
                }
                if let Some(line) = self.hours(site, now) {
                    path = path.over(line.access);
                }
            }
        }
        if let Some(bursts) = path.bursts
            && self.is_bad(now, (here.min(there), here.max(there)), bursts, rng)
        {
            path.loss += bursts.loss;
        }
        path.loss = (path.loss + self.storm).min(LOSS_MAX);
        path
    }

    /// Whether a burst of loss is under way.
    fn is_bad(&mut self, now: Time, pair: (usize, usize), of: Bursts, rng: &mut Rng) -> bool {
        let begin = Weather {
            bad: false,
            until: self.midnight,
        };
        let weather = self.weather.entry(pair).or_insert(begin);
        while weather.until <= now {
            // Good weather lasts from nothing to twice what it does on average.
            weather.bad = !weather.bad && weather.until > self.midnight;
            let lasts = match weather.bad {
                true => of.lasts.0.0 + rng.below(of.lasts.1.0.saturating_sub(of.lasts.0.0) + 1),
                false => 1 + rng.below(2 * of.every.0),
            };
            weather.until = weather.until + Span(lasts.max(1));
        }
        weather.bad
    }

    /// How long one way takes now.
    pub fn latency(&mut self, now: Time, (from, to): (usize, usize), rng: &mut Rng) -> u64 {
        let sites = (self.site(from), self.site(to));
        let path = self.path(now, sites, rng);
        roll(path.latency, rng)
    }

    /// When a message that is sent now is written, and when it arrives. What is sent first on a connection arrives first: all goes over streams.
    pub fn send(
        &mut self,
        now: Time,
        way: Way,
        len: usize,
        purpose: Purpose,
        rng: &mut Rng,
    ) -> (Time, Time) {
        let begin = now.0 * 1000;
        let Way { from, to, via } = way;
        let first = via.unwrap_or(to);
        let one = self.leg(begin, (from, first), len, rng);
        self.count((from, first), one.bytes, (purpose, via));
        let (mut through, mut latency, mut held) = (one.through, one.latency, one.held);
        let mut per_packet = one.per_packet;
        if let Some(via) = via {
            let arrived = through + (latency + held) * 1000;
            let two = self.leg(arrived, (via, to), len, rng);
            self.add(via, two.bytes, Purpose::Relay, true);
            self.add(to, two.bytes, purpose, false);
            (through, latency, held) = (two.through, two.latency, two.held);
            per_packet = per_packet.max(two.per_packet);
        }
        let mut written = one.written;
        let Some(pipe) = self.pipes.get_mut(from) else {
            return (now, now);
        };
        let pipe = pipe.entry(to).or_default();
        if per_packet > 0 {
            pipe.room = pipe.room.max(begin) + one.packets * per_packet;
            written = written.max(pipe.room);
            through = through.max(pipe.room);
        }
        let arrives = Time(through.div_ceil(1000) + latency + held).max(pipe.last);
        pipe.last = arrives;
        if arrives.since(now) > LATE {
            pipe.late = arrives.max(pipe.late);
        }
        (Time(written.div_ceil(1000)), arrives)
    }

    /// A message goes out of which nobody takes notice: it takes its room on the lines, and no more is to be known of it.
    pub fn send_in_vain(&mut self, now: Time, way: Way, len: usize, purpose: Purpose) {
        let Way { from, to, via } = way;
        let begin = now.0 * 1000;
        let first = via.unwrap_or(to);
        let packets = self.packets((self.site(from), self.site(first)), len);
        let bytes = bytes(len, packets);
        self.messages += 1;
        let (_, through) = self.occupy(begin, (from, first), bytes);
        self.count((from, first), bytes, (purpose, via));
        if let Some(via) = via {
            self.occupy(through, (via, to), bytes);
            self.add(via, bytes, Purpose::Relay, true);
            self.add(to, bytes, purpose, false);
        }
    }

    /// How long one way takes at least.
    pub fn least_latency(&self, from: usize, to: usize) -> Span {
        Span(self.at_rest(self.site(from), self.site(to)).latency.0)
    }

    fn packets(&self, sites: (usize, usize), len: usize) -> u64 {
        let payload = self
            .at_rest(sites.0, sites.1)
            .mtu
            .saturating_sub(HEADS_BYTES);
        (len as u64).div_ceil(payload.max(1)).max(1)
    }

    /// A message goes from one device to another without a third, beginning then.
    fn leg(&mut self, begin: Micros, (from, to): (usize, usize), len: usize, rng: &mut Rng) -> Leg {
        let sites = (self.site(from), self.site(to));
        let path = self.path(Time(begin / 1000), sites, rng);
        let packets = self.packets(sites, len);
        let twice = some(packets, path.duplicated, rng);
        let bytes = bytes(len, packets) + twice * path.mtu.min(len as u64 + HEADS_BYTES);
        self.messages += 1;
        let (written, through) = self.occupy(begin, (from, to), bytes);
        let latency = roll(path.latency, rng);
        let (mut held, mut per_packet) = (0, 0);
        if path.loss > 0 {
            let round = 2 * latency.max(1);
            let lost = some(packets, path.loss, rng);
            self.lost += lost;
            if lost > 0 {
                held = round.max(AGAIN_MS);
            }
            // What the usual congestion control lets through.
            let window = WINDOW * MILLION / isqrt(path.loss * MILLION).max(1);
            per_packet = round * MILLION / window.max(1000);
        }
        if path.reordered > 0 && some(packets, path.reordered, rng) > 0 {
            // What others overtook is waited for: as long again, at most.
            held = held.max(rng.below(latency + 1));
        }
        Leg {
            packets,
            bytes,
            written,
            through,
            latency,
            held,
            per_packet,
        }
    }

    /// When bytes are through the line out of their site, and through that into the other.
    fn occupy(
        &mut self,
        begin: Micros,
        (from, to): (usize, usize),
        bytes: u64,
    ) -> (Micros, Micros) {
        let (here, there) = (self.site(from), self.site(to));
        if here == there {
            return (begin, begin);
        }
        let now = Time(begin / 1000);
        let rates = |site: usize| {
            let usual = self.sites.get(site).map_or((None, None), |site| site.rates);
            match self.hours(site, now) {
                Some(line) => ((line.up.or(usual.0), line.down.or(usual.1)), line.metered),
                None => (usual, false),
            }
        };
        let (((up, _), out), ((_, down), into)) = (rates(here), rates(there));
        for (device, metered) in [(from, out), (to, into)] {
            if let (true, Some(count)) = (metered, self.metered.get_mut(device)) {
                *count += bytes;
            }
        }
        let micros = |rate: u64| bytes * 8 * MILLION / rate.max(1);
        let mut written = begin;
        if let (Some(rate), Some(site)) = (up, self.sites.get_mut(here)) {
            site.free.0 = site.free.0.max(begin) + micros(rate);
            written = site.free.0;
        }
        let mut through = written;
        if let (Some(rate), Some(site)) = (down, self.sites.get_mut(there)) {
            site.free.1 = site.free.1.max(through) + micros(rate);
            through = site.free.1;
        }
        (written, through)
    }

    fn add(&mut self, device: usize, bytes: u64, purpose: Purpose, sends: bool) {
        let counts = if sends { &mut self.sent } else { &mut self.got };
        if let Some(counts) = counts.get_mut(device) {
            counts.add(bytes, purpose);
        }
    }

    /// Counts bytes that went from one device to another, or to one that relays them.
    pub fn count(
        &mut self,
        (from, to): (usize, usize),
        bytes: u64,
        (purpose, via): (Purpose, Option<usize>),
    ) {
        self.add(from, bytes, purpose, true);
        let there = if via.is_some() {
            Purpose::Relay
        } else {
            purpose
        };
        self.add(to, bytes, there, false);
    }

    /// When all has arrived between these two that took long; long ago if nothing did.
    pub fn late(&self, one: usize, other: usize) -> Time {
        let late = |from: usize, to: usize| {
            let pipe = self.pipes.get(from).and_then(|pipes| pipes.get(&to));
            pipe.map_or(Time::default(), |pipe| pipe.late)
        };
        late(one, other).max(late(other, one))
    }

    /// What was under way arrives then, and nothing sent later does before.
    pub fn held_until(&mut self, from: usize, to: usize, at: Time) {
        if let Some(pipes) = self.pipes.get_mut(from) {
            let pipe = pipes.entry(to).or_default();
            pipe.last = pipe.last.max(at);
        }
    }

    /// A connection has ended: what was on its way is lost.
    pub fn cut(&mut self, one: usize, other: usize) {
        for (from, to) in [(one, other), (other, one)] {
            if let Some(pipe) = self
                .pipes
                .get_mut(from)
                .and_then(|pipes| pipes.get_mut(&to))
            {
                *pipe = Pipe {
                    late: pipe.late,
                    ..Pipe::default()
                };
            }
        }
    }
}

/// What a message takes in so many packets.
fn bytes(len: usize, packets: u64) -> u64 {
    len as u64 + HEAD_BYTES + packets * PACKET_HEAD_BYTES
}

/// One between the two, mostly nearer the least, as latencies are: by the square of an even chance.
fn roll((least, most): (u64, u64), rng: &mut Rng) -> u64 {
    let even = rng.below(1001);
    least + (most.saturating_sub(least) * even * even + 500_000) / 1_000_000
}

/// How many of these packets meet what so many of a million meet.
fn some(packets: u64, of_a_million: u64, rng: &mut Rng) -> u64 {
    if of_a_million == 0 {
        return 0;
    }
    if packets > ROLLED_MAX {
        return packets * of_a_million / MILLION;
    }
    let hit = (0..packets).filter(|_| rng.below(MILLION) < of_a_million);
    hit.count() as u64
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
        Network::new(&file::read("test", text).unwrap(), Time(0))
    }

    fn way(from: usize, to: usize) -> Way {
        Way {
            from,
            to,
            via: None,
        }
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
            let (written, arrives) = network.send(begin, way(0, 1), len, Purpose::Blocks, &mut rng);
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
        let (_, arrives) = network.send(Time(5), way(1, 0), 1 << 20, Purpose::Blocks, &mut rng);
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
    fn a_line_is_another_at_other_hours() {
        let lines = "[[line]]\nsite = 'two'\nhours = '08:00-22:00'\ndown = '8Mbit/s'\nlatency = '100ms'\nmetered = true\n";
        let mut network = network(&(two("", "latency = '10ms'") + lines));
        let mut rng = Rng::from_seed([7; 32]);
        let mut at = |hour: u64, from: usize, network: &mut Network| {
            let at = Time(hour * 3_600_000);
            let (_, arrives) = network.send(
                at,
                way(from, 1 - from),
                1_000_000,
                Purpose::Blocks,
                &mut rng,
            );
            arrives.since(at).0
        };
        assert_eq!(at(3, 0, &mut network), 10);
        assert_eq!(network.metered, [0, 0]);
        let by_day = at(9, 0, &mut network);
        assert!((1100..1160).contains(&by_day), "{by_day}");
        let metered = network.metered[1];
        assert!(metered > 1_000_000 && network.metered[0] == 0, "{metered}");
        // Only what comes in was said to be narrow.
        assert_eq!(at(9, 1, &mut network), 110);
        assert!(network.metered[1] > 2 * 1_000_000);
        assert_eq!(at(22, 0, &mut network), 10);
    }

    #[test]
    fn losses_come_in_bursts_and_are_as_many_as_was_said() {
        let bursts = "latency = '10ms'\nbursts = { loss = '40%', every = '9s', lasts = '1s' }";
        let mut network = network(&two("", bursts));
        let mut rng = Rng::from_seed([9; 32]);
        let (mut hit, mut together, mut before) = (0, 0, false);
        for n in 0..200_000 {
            let lost = network.lost;
            network.send(Time(n * 10), way(0, 1), 100, Purpose::Sync, &mut rng);
            let now = network.lost > lost;
            hit += u32::from(now);
            together += u32::from(now && before);
            before = now;
        }
        // A tenth of the time, and of that four tenths; after one lost packet the next is lost as often as in the burst.
        assert!((7000..9000).contains(&hit), "{hit}");
        assert!(together * 100 / hit > 35, "{together} of {hit}");
    }

    #[test]
    fn what_is_overtaken_is_waited_for_and_what_comes_twice_takes_room() {
        let mut network = network(&two("", "latency = '50ms'\nreordered = '10%'"));
        let mut rng = Rng::from_seed([3; 32]);
        let took: Vec<u64> = (0..1000)
            .map(|n| {
                let at = Time(n * 1000);
                network
                    .send(at, way(0, 1), 100, Purpose::Sync, &mut rng)
                    .1
                    .since(at)
                    .0
            })
            .collect();
        let held = took.iter().filter(|took| **took > 50).count();
        assert!((60..140).contains(&held), "{held}");
        assert!(took.iter().all(|took| (50..=100).contains(took)));
        let mut twice = self::network(&two("", "latency = '5ms'\nduplicated = '50%'"));
        let mut once = self::network(&two("", "latency = '5ms'"));
        let mut small = self::network(&two("", "latency = '5ms'\nmtu = '600B'"));
        for network in [&mut twice, &mut once, &mut small] {
            takes(network, 10, 140_000);
        }
        let sent = |network: &Network| network.sent[0].named()[0].1;
        assert_eq!(sent(&once), 10 * (140_000 + 90 + 100 * 40));
        assert_eq!(sent(&twice), 10 * (140_000 + 90 + 100 * 40 + 50 * 1500));
        assert_eq!(sent(&small), 10 * (140_000 + 90 + 280 * 40));
    }

    #[test]
    fn what_is_relayed_takes_both_ways_and_the_relays_lines() {
        let text = "about = 'x'\nduration = '1h'\n[between]\nlatency = '30ms'\n[[site]]\nname = 'one'\n[[site]]\nname = 'two'\n[[site]]\nname = 'mid'\nup = '8Mbit/s'\n\
             [[device]]\nname = 'a'\nsite = 'one'\nadmin = true\n[[device]]\nname = 'b'\nsite = 'two'\n[[device]]\nname = 'r'\nsite = 'mid'\n";
        let mut network = network(text);
        let mut rng = Rng::from_seed([3; 32]);
        let way = Way {
            from: 0,
            to: 1,
            via: Some(2),
        };
        let (written, arrives) = network.send(Time(0), way, 1_000_000, Purpose::Blocks, &mut rng);
        assert_eq!(written, Time(0));
        assert!((1060..1110).contains(&arrives.0), "{arrives:?}");
        let (sent, got) = (&network.sent, &network.got);
        assert_eq!(sent[2].named(), [("relay", sent[0].named()[0].1)]);
        assert_eq!(got[2].named(), sent[2].named());
        assert_eq!(got[1].named(), sent[0].named());
    }

    #[test]
    fn roots_are_right() {
        for number in [0, 1, 3, 4, 99, 100, 101, 1 << 40, (1 << 40) - 1] {
            let root = isqrt(number);
            assert!(root * root <= number && (root + 1) * (root + 1) > number);
        }
    }
}
